"""The audit of a network for behaviour that only its quantised versions show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.nets.fake_quant import FakeQuantizer, Ranges, activation_ranges
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import predict

SIGMAS = 5.0
LIMIT = 0.05  # the share of changed decisions at 8 bits that is called abnormal by itself


@dataclass(frozen=True)
class Disparity:
    """How a network on a grid differs from itself, over n samples.

    ``disagreement`` is the share of decisions that change and ``divergence`` the mean KL(float || quantised) in nats;
    with labels, ``drop`` is the loss of accuracy and ``worst_class`` the largest loss of a class. ``z`` is how many
    standard deviations the disagreement lies above that of reference networks, None without them; ``alarm`` whether
    it is more than 5, or 8-bit decisions change on more than 5% of the samples.
    """

    disagreement: float
    divergence: float
    drop: float | None = None
    worst_class: float | None = None
    z: float | None = None
    alarm: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantizationAudit:
    """Compare a network with its quantised versions (after Hong et al., 2021, arXiv:2110.13541, section 5).

    The attack leaves the float network as it should be and shows on the grids of ``bits``, whatever their kind:
    ``weight`` and ``activation`` as in FakeQuantizer. The ranges of activations are those of the samples given, so the
    result does not depend on batches. A network with outlying weights changes at few bits too: judge at 8 first.
    Raises InputError for unusable inputs.
    """

    kind: ClassVar[str] = "function"

    bits: tuple[int, ...] = (8, 6, 4)
    weight: str = "per_layer_symmetric"
    activation: str | None = "per_layer_asymmetric"

    def __post_init__(self) -> None:
        if not self.bits:
            raise InputError("QuantizationAudit: bits is empty; expected at least one number")
        for b in self.bits:
            self.quantizer(b)

    def quantizer(self, bits: int) -> FakeQuantizer:
        """The grids of a number of bits."""
        return FakeQuantizer(bits=bits, weight=self.weight, activation=self.activation)

    def score(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"] | None = None
    ) -> dict[int, Disparity]:
        """The disparity at each number of bits; the model is not changed."""
        check_inputs("QuantizationAudit", x)
        if y is not None:
            check_labels("QuantizationAudit", y, len(x))
        whole, ranges = predict(model, x), activation_ranges(model, x)
        return {b: self._compare(whole, self._coarse(model, x, b, ranges), b, y) for b in self.bits}

    def _coarse(self, model: nn.Module, x: Tensor, bits: int, ranges: Ranges) -> Tensor:
        with self.quantizer(bits).applied(model, ranges):
            return predict(model, x)

    def _compare(self, whole: Tensor, coarse: Tensor, bits: int, y: Tensor | None) -> Disparity:
        differ = float((whole.argmax(1) != coarse.argmax(1)).double().mean())
        p, q = whole.double().log_softmax(1), coarse.double().log_softmax(1)
        divergence, alarm = float((p.exp() * (p - q)).sum(1).mean()), bits == 8 and differ > LIMIT
        if y is None:
            return Disparity(differ, divergence, alarm=alarm)
        lost = (whole.argmax(1) == y).double() - (coarse.argmax(1) == y).double()
        worst = max(float(lost[y == c].mean()) for c in y.unique())
        return Disparity(differ, divergence, float(lost.mean()), worst, alarm=alarm)

    def fit(self, references: Sequence[nn.Module], x: Float[Tensor, "n ..."]) -> FittedQuantizationAudit:
        """The audit that knows how far clean ``references`` (at least 2) differ from their quantised versions."""
        if len(references) < 2:
            raise InputError(f"QuantizationAudit: {len(references)} references; expected at least 2")
        found = [self.score(model, x) for model in references]
        levels = {b: np.array([f[b].disagreement for f in found]) for b in self.bits}
        return FittedQuantizationAudit(
            self, {b: float(v.mean()) for b, v in levels.items()}, {b: float(v.std(ddof=1)) for b, v in levels.items()}
        )


@dataclass(frozen=True)
class FittedQuantizationAudit:
    """What ``QuantizationAudit.fit`` gives: mean and standard deviation of the references' disagreement, by bits."""

    audit: QuantizationAudit
    mean_: Mapping[int, float]
    std_: Mapping[int, float]

    def score(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"] | None = None
    ) -> dict[int, Disparity]:
        """As ``QuantizationAudit.score``, with z and the alarm it gives; one sample in n is the least deviation."""
        found = {}
        for b, d in self.audit.score(model, x, y).items():
            z = (d.disagreement - self.mean_[b]) / max(self.std_[b], 1 / len(x))
            found[b] = Disparity(d.disagreement, d.divergence, d.drop, d.worst_class, z, d.alarm or z > SIGMAS)
        return found
