"""Early-learning regularisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.training import State, Trainer

CLAMP = 1e-4  # keeps <t, p> away from 1, where the logarithm diverges


def rampup(step: float, length: int) -> float:
    """exp(-5 (1 - step / length)^2), which reaches 1 at ``length`` steps and stays there; 1 where ``length`` is 0."""
    return math.exp(-5 * (1 - min(step / length, 1.0)) ** 2) if length else 1.0


@dataclass(frozen=True, kw_only=True)
class ELR(Trainer):
    """Cross-entropy + ``strength`` x mean log(1 - <t, p>) (Liu et al., 2020, arXiv:2007.00151, eq. 6-8).

    p is the softmax, clamped to [1e-4, 1 - 1e-4]; t is the sample's running average of p, of decay ``beta`` in [0, 1).
    It starts at zero, so that it sums to less than 1 in the first epochs and the term sets in gradually. ``strength``
    >= 0 is the paper's lambda; the defaults are those for CIFAR-10 under symmetric noise (0.9 and 7 for CIFAR-100).
    Where a large strength holds the network to its first predictions, ``strength_steps`` > 0 lets it rise: the term
    then weighs rampup(step, ``strength_steps``), steps counted from 1, as the authors have it for ELR+.
    The memory holds n x c floats. Raises InputError for other parameters, for a data set that names two samples alike,
    and for logits without exactly one finite column a class.
    """

    needs: ClassVar[tuple[str, ...]] = ("index",)

    beta: float = 0.7
    strength: float = 3.0
    strength_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise InputError(f"ELR: beta={self.beta}; expected a decay in [0, 1)")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise InputError(f"ELR: strength={self.strength}; expected a finite number >= 0")
        if self.strength_steps < 0:
            raise InputError(f"ELR: strength_steps={self.strength_steps}; expected a number of steps >= 0")

    def penalty(self, logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
        """``strength`` x mean log(1 - <t, p>), at most 0, for targets t that carry no gradient."""
        return self.strength * (1 - (target * _softmax(logits)).sum(1)).log().mean()

    def term(self, logits: Float[Tensor, "b c"], index: Int[Tensor, " b"], state: State) -> Float[Tensor, ""]:
        """The regulariser; it moves the averages of the samples that ``index`` names."""
        now = _softmax(logits.detach())
        return self.penalty(logits, state.ema("elr", index, now / now.sum(1, keepdim=True), self.beta))

    def check_logits(self, logits: Tensor, batch: Batch, state: State) -> None:
        """InputError unless the logits (b, c) have one finite column a class."""
        where, expected = type(self).__name__, (len(batch.y), len(state.data.classes))
        if logits.shape != expected:
            raise InputError(f"{where}: logits have shape {tuple(logits.shape)}; expected {expected}")
        if not torch.isfinite(logits).all():
            raise InputError(f"{where}: logits hold NaN or infinite values at step {state.step}; expected finite")

    def check_names(self, data: Data) -> None:
        """InputError for a data set that names two samples alike: they would share one average."""
        distinct = len(data.index.unique())
        if distinct < len(data):
            raise InputError(
                f"{type(self).__name__}: data {data.name!r} has {distinct} names for {len(data)} samples; "
                "expected one each"
            )

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits = model(batch.x)
        self.check_logits(logits, batch, state)
        weight = rampup(state.step + 1, self.strength_steps)
        return F.cross_entropy(logits, batch.y) + weight * self.term(logits, batch.index, state)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        self.check_names(data)
        return super().fit(model, data, seed=seed, **options)


def _softmax(logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """The softmax in single precision or better, clamped to [CLAMP, 1 - CLAMP]."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).clamp(CLAMP, 1 - CLAMP)
