"""Class unlearning by subset fidelity, with forward passes alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.compress import FittedFidelity, SubsetFidelity
from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import torch_rng
from assay.subject import Subject
from assay.unlearn.base import Unlearner

SHARES = tuple(k / 20 for k in range(1, 20))
AIM = 0.05
RULES = ("forget", "gap")


@dataclass(frozen=True, kw_only=True)
class ModHiFiU(Unlearner):
    """Zero the components that carry a class (Kashyap et al., 2025, arXiv:2511.19566, "ModHiFi-U").

    Of the inputs of each edited layer the ``p`` share of highest fidelity on samples of the class, s^f, is set to zero
    and the rest is left alone: no labels, no gradients, no fine-tuning. ``rule`` "forget" is the paper's; "gap" ranks
    by s^f - s^r with s^r the fidelities on ``retain``. ``compensate`` then scales what is kept by delta* on ``retain``
    (see SubsetFidelity), in every output but the logit of the forgotten class, which would come back: the class that
    the model sees most in ``forget``. "gap" and ``compensate`` are ours. ``layers`` "last" edits the classifier's
    input, or names layers; which the paper edits, and its p, are not known to us. ``p`` "auto" takes the first of 0.05,
    0.1 ... 0.95 at which at most 5% of ``forget`` are still given that class, else that at which the fewest are.
    ``n_max`` samples of each set are used.

    The features keep the class where the head alone is edited: judge it by a linear probe as well. ``control`` zeroes
    as many components (a tenth for "auto") at random and compensates all outputs. Raises InputError for a p outside
    (0, 1), unknown rules and layers, and layers whose weights are frozen.
    """

    p: float | Literal["auto"] = 0.1
    rule: Literal["forget", "gap"] = "forget"
    layers: str | tuple[str, ...] = "last"
    compensate: bool = False
    n_max: int = 1024

    def __post_init__(self) -> None:
        if self.p != "auto" and not (isinstance(self.p, float) and math.isfinite(self.p) and 0 < self.p < 1):
            raise InputError(f"ModHiFiU: p={self.p!r}; expected a share in (0, 1) or 'auto'")
        if self.rule not in RULES:
            raise unknown("rule of ModHiFiU", str(self.rule), RULES)
        if self.n_max < 1:
            raise InputError(f"ModHiFiU: n_max={self.n_max}; expected at least 1")

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The edited model."""
        return self.edit(subject, forget, retain)[0]

    def edit(self, subject: Subject, forget: Data, retain: Data) -> tuple[nn.Module, float]:
        """The edited model and the share that was zeroed."""
        self.check(subject, forget, retain)
        lost, kept = self._measured(subject.model, forget), self._measured(subject.model, retain)
        ranking = {n: self.scores(n, lost, kept).argsort(descending=True, stable=True) for n in lost.weights_}
        asked = forget.limit(self.n_max)
        target = int(predict(subject.model, asked.x).argmax(1).mode().values)
        found: list[tuple[float, float, nn.Module]] = []
        for p in SHARES if self.p == "auto" else (self.p,):
            model = self._edited(subject.model, ranking, float(p), kept, self.spared(target))
            left = float((predict(model, asked.x).argmax(1) == target).float().mean())
            found.append((left, float(p), model))
            if left <= AIM:
                break
        _, share, best = min(found, key=lambda f: max(f[0], AIM))
        return best, share

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The model without random components, compensated."""
        train = self.check(subject, forget, retain)
        found = self._measured(subject.model, train)
        ranking = {
            n: torch.randperm(w.shape[2], generator=torch_rng(seed, "control", n)) for n, w in found.weights_.items()
        }
        share = 0.1 if self.p == "auto" else float(self.p)
        return self._edited(subject.model, ranking, share, found, None, compensate=True)

    def scores(self, layer: str, lost: FittedFidelity, kept: FittedFidelity) -> Float[Tensor, " c"]:
        """How much each component carries what is forgotten: s^f, less s^r under the rule "gap"."""
        found = lost.channel_scores(layer)
        return found - kept.channel_scores(layer) if self.rule == "gap" else found

    def spared(self, target: int) -> int | None:
        """The classifier's output that is not compensated."""
        return target

    def _measured(self, model: nn.Module, data: Data) -> FittedFidelity:
        return SubsetFidelity(layer_names=self._edits(model)).fit(model, data.limit(self.n_max).x)

    def _edits(self, model: nn.Module) -> tuple[str, ...]:
        if self.layers != "last":
            return (self.layers,) if isinstance(self.layers, str) else self.layers
        return (_classifier(model),)

    @torch.no_grad()
    def _edited(
        self,
        model: nn.Module,
        ranking: dict[str, Int[Tensor, " c"]],
        p: float,
        fidelity: FittedFidelity,
        spared: int | None,
        *,
        compensate: bool | None = None,
    ) -> nn.Module:
        """A copy of ``model`` without the first ceil(p c) components of each layer's ranking."""
        other = copy.deepcopy(model).eval()
        modules: dict[str, Any] = dict(other.named_modules())
        for name, order in ranking.items():
            if not modules[name].weight.requires_grad:
                raise InputError(f"ModHiFiU: the weights of layer {name!r} are frozen; expected ones that can change")
            weight, count = modules[name].weight, max(math.ceil(p * len(order) - 1e-9), 1)
            rest = order[count:].sort().values
            weight[:, order[:count]] = 0.0
            if (self.compensate if compensate is None else compensate) and len(rest):
                delta = fidelity.compensation(name, rest).to(weight)
                if name == _classifier(model) and spared is not None:
                    delta[spared] = 1.0
                weight[:, rest] *= delta.reshape(*delta.shape, *[1] * (weight.dim() - 2))
        return other


def _classifier(model: nn.Module) -> str:
    """The name of the last linear layer."""
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise InputError("ModHiFiU: the model has no linear layer; expected a classifier, or layers by name")
    return linear[-1]
