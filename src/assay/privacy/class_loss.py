"""The loss against what the class's unseen samples have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Inference, Reference, losses


@dataclass(frozen=True)
class FittedClassLoss:
    """``reference_`` holds samples that the model did not train on."""

    reference_: Data
    batch_size: int

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference. A class without reference samples gets the mean over all of them."""
        where = "ClassLoss"
        loss = losses(where, model, data, self.batch_size)
        unseen = losses(where, model, self.reference_, self.batch_size)
        size = 1 + int(max(data.y.max(), self.reference_.y.max()))
        count = torch.bincount(self.reference_.y, minlength=size)
        mean = torch.bincount(self.reference_.y, unseen, minlength=size) / count.clamp_min(1)
        usual = torch.where(count > 0, mean, unseen.mean())
        return usual[data.y] - loss


@dataclass(frozen=True, kw_only=True)
class ClassLoss(Inference):
    """Score = mean loss of the class's unseen samples - loss: a loss threshold for each class.

    Class-dependent thresholds are those of Song & Mittal (2021, arXiv:2003.10595); the difficulty that is
    subtracted (Watson et al., 2022, arXiv:2111.08440) is here the target's own mean loss on the class instead
    of a reference model's loss on the sample, so no model is trained. ``reference.data`` must be unseen by the target.
    """

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedClassLoss:
        return FittedClassLoss(self.given(reference).data, self.batch_size)
