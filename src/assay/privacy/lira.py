"""The likelihood-ratio attack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Inference, Reference, logit_confidence
from assay.privacy.shadows import Shadows, average, train_shadows
from assay.runtime.errors import InputError

FEW = 64
FLOOR = 1e-12


def scatter(
    values: Float[Tensor, "k n"], mask: Bool[Tensor, "k n"], who: str
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Each sample's mean over the models in ``mask``, sum of squares about it, and degrees of freedom."""
    mean = average(values, mask, who)
    square = torch.where(mask, values - mean, 0).square().sum(0)
    return mean, square, (mask.sum(0) - 1).double()


def ratio(square: Tensor, freedom: Tensor) -> Tensor:
    """A variance; InputError where no degree of freedom is left for it."""
    if not (freedom > 0).all():
        raise InputError("LiRA: a variance over one shadow model; expected two that saw and two that did not")
    return (square / freedom).clamp_min(FLOOR)


@dataclass(frozen=True)
class FittedLiRA:
    """``shadows_``, and the variances of the models that saw a sample and of those that did not, pooled over the
    shadow models' data (None: each sample has its own)."""

    shadows_: Shadows
    in_variance_: Tensor | None
    out_variance_: Tensor | None
    online: bool
    batch_size: int

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference; ``data.index`` says which of the samples a shadow model trained on.

        Online every sample must lie in the shadow models' pool; offline it may.
        """
        confidence = partial(logit_confidence, "LiRA", batch_size=self.batch_size)
        phi, shadow = confidence(model, data), self.shadows_.signals(confidence, data)
        seen = self.shadows_.membership(data.index)
        out, square, freedom = scatter(shadow, ~seen, "LiRA: models that did not see them")
        out_var = ratio(square, freedom) if self.out_variance_ is None else self.out_variance_
        if not self.online:
            return (phi - out) / out_var.sqrt()
        inside, square, freedom = scatter(shadow, seen, "LiRA: models that saw them")
        in_var = ratio(square, freedom) if self.in_variance_ is None else self.in_variance_
        return 0.5 * ((phi - out).square() / out_var - (phi - inside).square() / in_var + (out_var / in_var).log())


@dataclass(frozen=True, kw_only=True)
class LiRA(Inference):
    """Gaussian likelihood ratio of the logit-scaled confidence (Carlini et al., 2022, arXiv:2112.03570).

    ``models`` shadow models train on random halves of the reference's data (algorithm 1). Online: the log-ratio of the
    densities of the models that saw the sample and of those that did not. Offline: only the latter, the score
    is (phi - mean) / deviation, whose normal distribution function is the paper's one-sided test.
    ``variance``: "sample", "global" (about each sample's mean, pooled over the shadow models' data), or "auto": global
    below 64 models as in the paper. One query a sample, no augmentation. Errors: see train_shadows.
    """

    models: int = 16
    online: bool = True
    variance: Literal["auto", "global", "sample"] = "auto"

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedLiRA:
        return self.from_shadows(train_shadows(self.given(reference), self.models, seed=seed))

    def from_shadows(self, shadows: Shadows) -> FittedLiRA:
        """The attack with models that are already there."""
        if self.variance not in ("auto", "global", "sample"):
            raise InputError(f"LiRA: variance is {self.variance!r}; expected 'auto', 'global' or 'sample'")
        if self.variance == "sample" or (self.variance == "auto" and len(shadows.models) >= FEW):
            return FittedLiRA(shadows, None, None, self.online, self.batch_size)
        confidence = partial(logit_confidence, "LiRA", batch_size=self.batch_size)
        values = shadows.signals(confidence, shadows.data)
        pooled: list[Tensor] = []
        for mask in (shadows.seen, ~shadows.seen):
            _, square, freedom = scatter(values, mask, "LiRA: models on one side")
            pooled.append(ratio(square.sum(), freedom.sum()))
        return FittedLiRA(shadows, pooled[0], pooled[1], self.online, self.batch_size)
