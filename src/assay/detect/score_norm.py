"""The length of the score."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.eps import FittedPerturbed, PerturbedDetector


@dataclass(kw_only=True)
class FittedScoreNorm(FittedPerturbed):
    """Score >= 0."""

    def of_eps(self, eps: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return eps.flatten(1).double().norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class ScoreNorm(PerturbedDetector):
    """|s(x, 1 / n_steps)| at the input itself, the baseline S-N of Zhang et al. (2023, arXiv:2305.16035, section 5).

    With ``T`` = 20 and ``perturb`` it is their EPS-N, the length of the expected perturbation score. Nothing is learned
    where ``score_model`` is given. Shapes and errors: see Detector.
    """

    T: int = 1
    perturb: bool = False

    def learn(self, model: nn.Module, data: Data) -> FittedScoreNorm:
        return FittedScoreNorm(**self.options(model, data))  # type: ignore[arg-type]
