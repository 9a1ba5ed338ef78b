"""The loss against what reference models that never saw the sample have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Inference, Reference, losses
from assay.privacy.shadows import Shadows, average, train_shadows


@dataclass(frozen=True)
class FittedCalibratedLoss:
    """``shadows_`` are the reference models."""

    shadows_: Shadows
    batch_size: int

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference; ``data.index`` says which of the samples a reference model trained on."""
        loss = partial(losses, "CalibratedLoss", batch_size=self.batch_size)
        out = ~self.shadows_.membership(data.index)
        usual = average(self.shadows_.signals(loss, data), out, "CalibratedLoss: models that did not see them")
        return usual - loss(model, data)


@dataclass(frozen=True, kw_only=True)
class CalibratedLoss(Inference):
    """Score = mean loss of reference models that did not see the sample - loss: difficulty calibration.

    Watson et al. (2022, arXiv:2111.08440, with the loss of Yeom et al. as the score). ``models`` references are
    trained by the reference's recipe on random halves of its data. Errors: see train_shadows.
    """

    models: int = 8

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedCalibratedLoss:
        return self.from_shadows(train_shadows(self.given(reference), self.models, seed=seed))

    def from_shadows(self, shadows: Shadows) -> FittedCalibratedLoss:
        """The attack with models that are already there."""
        return FittedCalibratedLoss(shadows, self.batch_size)
