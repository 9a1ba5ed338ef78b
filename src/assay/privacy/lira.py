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


def gaussians(
    values: Float[Tensor, "k n"], mask: Bool[Tensor, "k n"], *, per_sample: bool, who: str
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Mean of each sample over the models in ``mask``, and variance: its own, or pooled over all samples.

    Both variances are about each sample's mean with a degree of freedom taken for it.
    """
    mean = average(values, mask, who)
    square = torch.where(mask, values - mean, 0).square().sum(0)
    freedom = (mask.sum(0) - 1).double()
    if per_sample:
        if not (freedom > 0).all():
            raise InputError(f"{who}: some samples have one shadow model; expected two for their own variance")
        variance = square / freedom
    else:
        if not freedom.sum() > 0:
            raise InputError(f"{who}: every sample has one shadow model; expected two for a variance")
        variance = (square.sum() / freedom.sum()).expand_as(mean)
    return mean, variance.clamp_min(FLOOR)


@dataclass(frozen=True)
class FittedLiRA:
    """``shadows_`` and the options they are used with."""

    shadows_: Shadows
    online: bool
    per_sample: bool
    batch_size: int

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference; ``data.index`` says which of the samples a shadow model trained on.

        Online every sample must lie in the shadow models' pool; offline it may.
        """
        confidence = partial(logit_confidence, "LiRA", batch_size=self.batch_size)
        phi, shadow = confidence(model, data), self.shadows_.signals(confidence, data)
        seen = self.shadows_.membership(data.index)
        out, out_var = gaussians(shadow, ~seen, per_sample=self.per_sample, who="LiRA: models that did not see them")
        if not self.online:
            return (phi - out) / out_var.sqrt()
        inside, in_var = gaussians(shadow, seen, per_sample=self.per_sample, who="LiRA: models that saw them")
        return 0.5 * ((phi - out).square() / out_var - (phi - inside).square() / in_var + (out_var / in_var).log())


@dataclass(frozen=True, kw_only=True)
class LiRA(Inference):
    """Gaussian likelihood ratio of the logit-scaled confidence (Carlini et al., 2022, arXiv:2112.03570).

    ``models`` shadow models train on random halves of the reference's data (algorithm 1). Online: the log-ratio of the
    densities of the models that saw the sample and of those that did not (eq. 3-4). Offline: only the latter, the score
    is (phi - mean) / deviation, whose normal distribution function is the paper's one-sided test (section V-B).
    ``variance``: "sample", "global" (pooled over samples, for few models), or "auto": global below 64 models, as in
    section VI-A. One query a sample, no augmentation. Errors: see train_shadows.
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
        per_sample = self.variance == "sample" or (self.variance == "auto" and len(shadows.models) >= FEW)
        return FittedLiRA(shadows, self.online, per_sample, self.batch_size)
