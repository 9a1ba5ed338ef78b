"""The robust membership-inference attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Inference, Reference, outputs
from assay.privacy.shadows import Shadows, average, train_shadows
from assay.runtime.errors import InputError, unknown

FLOOR = 1e-12
SIGNALS = ("softmax", "taylor-soft-margin")


def exp_taylor(z: Tensor, order: int) -> Tensor:
    """The Taylor polynomial of exp at 0, sum of z^i / i! up to ``order``; positive everywhere where that is even."""
    total = torch.ones_like(z)
    for i in range(order, 0, -1):  # Horner's scheme
        total = 1 + z / i * total
    return total


@dataclass(frozen=True)
class FittedRMIA:
    """``shadows_`` are the reference models; ``population_`` the samples z to compare with, None for the shadow models'
    own data."""

    shadows_: Shadows
    population_: Data | None
    attack: RMIA

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference: the share of the z other than x with LR(x, z) >= gamma, in [0, 1].

        ``data.index`` says which of the samples a reference model trained on; online every one must lie in the pool.
        """
        z = self._population_ratio(model)
        own = self.population_ is None and data is self.shadows_.data
        limit = (z if own else self.ratio(model, data)) / self.attack.gamma
        beaten, count = torch.searchsorted(z.sort().values, limit, right=True), torch.full_like(limit, len(z))
        if self.population_ is None:
            rows, itself = self.shadows_.rows(data.index)
            beaten, count = beaten - (itself & (z[rows] <= limit)).long(), count - itself.double()
        return beaten / count.clamp_min(1)

    def pairwise(self, model: nn.Module, data: Data) -> Float[Tensor, "n m"]:
        """LR(x, z) = ratio(x) / ratio(z) of every sample x of ``data`` against every z."""
        return self.ratio(model, data)[:, None] / self._population_ratio(model)[None]

    def ratio(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """Pr(x | model) / Pr(x), with Pr(x) from the reference models."""
        return self._ratio(model, data, self.shadows_.membership(data.index))

    def _population_ratio(self, model: nn.Module) -> Float[Tensor, " m"]:
        if self.population_ is None:
            return self._ratio(model, self.shadows_.data, self.shadows_.seen)
        # None of the models saw them, whatever their indices; online too the mean is over all models.
        unseen = torch.zeros(len(self.shadows_.models), len(self.population_), dtype=torch.bool)
        return self._ratio(model, self.population_, unseen, alone=True)

    def _ratio(self, model: nn.Module, data: Data, seen: Bool[Tensor, "k n"], alone: bool = False) -> Tensor:
        signal = self.attack.signal_of
        shadow = self.shadows_.signals(signal, data)
        out = average(shadow, ~seen, "RMIA: models that did not see them")
        if not self.attack.online:
            prior = ((1 + self.attack.a) * out + (1 - self.attack.a)) / 2
        elif alone:
            prior = out
        else:
            prior = (average(shadow, seen, "RMIA: models that saw them") + out) / 2
        return signal(model, data) / prior


@dataclass(frozen=True, kw_only=True)
class RMIA(Inference):
    """Pairwise likelihood ratios against the population (Zarifzadeh et al., 2024, arXiv:2312.03262).

    Score(x) = Pr_z(LR(x, z) >= gamma) with LR(x, z) = [Pr(x | model) / Pr(x)] / [Pr(z | model) / Pr(z)]. Pr(x) is the
    mean over reference models: online, (mean of those that saw x + mean of those that did not) / 2; offline only the
    latter exist, and the former is taken as a Pr_out(x) + 1 - a, so Pr(x) = ((1 + a) Pr_out(x) + 1 - a) / 2: with
    ``a`` = 1 Pr_out itself. ``a`` in [0, 1] is tuned between two reference models in the paper (0.3 on CIFAR-10).
    ``signal`` is Pr(x | model): "softmax" of logits / ``temperature``, or "taylor-soft-margin", where exp gives way to
    its Taylor polynomial of even ``order`` and the true class's logit is lowered by ``margin`` (the paper's CIFAR runs,
    with temperature 2; the polynomial rises again far below 0, so that it suits small logits alone).

    z come from ``reference.population``; without one they are the shadow models' own data, each with its prior as x has
    it. For a fixed set of z the score is a rising function of ratio(x): the z decide what a threshold on the score
    means, not the order of the samples. ``gamma`` and the signal are those of the authors' present code; their CIFAR
    runs have gamma 2, where many samples of a model that fits little beat no z at all. ``models`` shadow models train
    on halves of ``reference.data``; errors: see train_shadows.
    """

    models: int = 16
    online: bool = True
    gamma: float = 1.0
    a: float = 0.3
    signal: Literal["softmax", "taylor-soft-margin"] = "softmax"
    temperature: float = 1.0
    margin: float = 0.6
    order: int = 4

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise unknown("signal of RMIA", str(self.signal), SIGNALS)
        if not (self.gamma > 0 and 0 <= self.a <= 1 and self.temperature > 0 and math.isfinite(self.margin)):
            raise InputError(
                f"RMIA: gamma={self.gamma}, a={self.a}, temperature={self.temperature}, margin={self.margin}; "
                "expected gamma > 0, a in [0, 1], temperature > 0, a finite margin"
            )
        if self.order < 2 or self.order % 2:
            raise InputError(f"RMIA: order={self.order}; expected an even number, at least 2")

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedRMIA:
        given = self.given(reference)
        return self.from_shadows(train_shadows(given, self.models, seed=seed), given.population)

    def from_shadows(self, shadows: Shadows, population: Data | None = None) -> FittedRMIA:
        """The attack with models that are already there."""
        return FittedRMIA(shadows, population, self)

    def signal_of(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """Pr(x | model) of each sample, in (0, 1]."""
        z = outputs("RMIA", model, data, self.batch_size) / self.temperature
        own = z.gather(1, data.y[:, None])
        if self.signal == "softmax":
            return (own[:, 0] - z.logsumexp(1)).exp().clamp_min(FLOOR)
        taylor = partial(exp_taylor, order=self.order)
        lowered, others = taylor(own - self.margin)[:, 0], taylor(z).scatter(1, data.y[:, None], 0.0).sum(1)
        return (lowered / (lowered + others)).clamp_min(FLOOR)
