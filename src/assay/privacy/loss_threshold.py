"""The loss as evidence of membership."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Inference, Reference, losses


@dataclass(frozen=True, kw_only=True)
class LossThreshold(Inference):
    """Score = -loss(model, x, y) (Yeom et al., 2018, arXiv:1709.01604: a member where the loss is low).

    Nothing is learned: ``fit`` returns the attack itself. Score in (-inf, 0], nats. Errors: InputError on bad data.
    """

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> LossThreshold:
        return self

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference."""
        return -losses("LossThreshold", model, data, self.batch_size)
