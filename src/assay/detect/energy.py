"""Free energy of the logits."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedLogits
from assay.runtime.errors import InputError
from assay.runtime.inference import check_logits


@dataclass(kw_only=True)
class FittedEnergy(FittedLogits):
    """Score: any real number."""

    temperature: float = 1.0

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return -self.temperature * (logits / self.temperature).logsumexp(1)


@dataclass(frozen=True, kw_only=True)
class Energy(Detector):
    """E(x) = -T log sum_c exp(f_c(x) / T) (Liu et al., 2020, arXiv:2010.03759, eq. 4), T = 1 as in section 3.2.

    Nothing is learned. It reads unnormalised logits: a model that returns log-probabilities has energy 0 everywhere.
    Shapes, ranges and errors: see Detector.
    """

    temperature: float = 1.0

    def learn(self, model: nn.Module, data: Data) -> FittedEnergy:
        if not self.temperature > 0:
            raise InputError(f"Energy: temperature is {self.temperature}; expected above 0")
        check_logits("Energy", model, data.x[:1])
        return FittedEnergy(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            temperature=self.temperature,
        )
