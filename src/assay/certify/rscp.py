"""Randomly smoothed conformal prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.calibrate import Outputs
from assay.certify.aps import APS
from assay.certify.base import FittedSets, SetPredictor
from assay.certify.lac import LAC
from assay.certify.ptt import FittedPTT
from assay.certify.raps import RAPS
from assay.certify.smoothed_scores import SmoothedScores, noisy_outputs
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown

SCORES: dict[str, SetPredictor] = {"hps": LAC(), "aps": APS(), "raps": RAPS()}


@dataclass(frozen=True)
class FittedRSCP(FittedSets):
    """A calibrated RSCP or RSCPPlus: ``threshold_`` is tau, ``slack_`` what the calibration scores may be off by."""

    method: RSCP
    slack_: float = 0.0

    def sets(self, outputs: Outputs) -> Bool[Tensor, "n c"]:
        """Which classes belong to each sample's set, from the views of its noisy copies."""
        return self.included(self.method.smooth(outputs, seed=self.seed, stream="sets"))

    def included(self, smoothed: SmoothedScores) -> Bool[Tensor, "n c"]:
        """Phi^-1(max(mean - b, 0)) - eps / sigma <= Phi^-1(min(tau + slack, 1)); Phi^-1 is -inf at 0, inf at 1.

        tau is that of the class where there is one for each.
        """
        low = (smoothed.mean - self.method.score_slack(smoothed)).clamp_min(0)
        cap = (self.limits + self.slack_).clamp_max(1.0)
        return torch.special.ndtri(low) - self.method.eps / self.method.sigma <= torch.special.ndtri(cap)


@dataclass(frozen=True, kw_only=True)
class RSCP(SetPredictor):
    """Smoothed scores change slowly: admit what an l2 step of ``eps`` can move to the threshold.

    Gendler et al., 2022, "Adversarially robust conformal prediction" (ICLR), as Yan et al., 2024, arXiv:2404.19651,
    section 2, restate it. The score S(x + ``sigma`` z, y) in [0, 1] is averaged over noisy copies, and
    Phi^-1 of its expectation is 1/sigma-Lipschitz in x. Sets cover at every x' with ||x' - x|| <= eps with probability
    at least 1 - alpha *if the mean were the expectation*: with finitely many draws this is a heuristic, which RSCPPlus
    repairs. ``score`` is "hps" (LAC), "aps", "raps" or any SetPredictor; its random u is shared by the copies of a
    sample. With ``by_class`` it holds among the samples of each class. ``transform`` is a fitted PTT, applied to scores
    before they are averaged. Outputs need ``views`` (v, n, c): logits of v >= 2 noisy copies, as ``outputs(model, x)``
    makes them (``n_samples`` of each). Raises InputError on options out of range, outputs without views, and scores
    outside [0, 1].
    """

    tight: ClassVar[bool] = False

    score: Literal["hps", "aps", "raps"] | SetPredictor = "hps"
    sigma: float = 0.25
    eps: float = 0.125
    n_samples: int = 256
    transform: FittedPTT | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        if not isinstance(self.score, SetPredictor) and self.score not in SCORES:
            raise unknown(f"score of {where}", str(self.score), SCORES)
        if not 0 < self.sigma < math.inf or not 0 <= self.eps < math.inf:
            raise InputError(f"{where}: sigma = {self.sigma}, eps = {self.eps}; expected finite, sigma > 0, eps >= 0")
        if self.n_samples < 2:
            raise InputError(f"{where}: n_samples is {self.n_samples}; expected at least 2")

    @property
    def miscoverage(self) -> float:
        """The level at which the threshold is set."""
        return self.alpha

    def calibration_slack(self, draws: int) -> float:
        """By how much a calibration score may be off: here nothing."""
        return 0.0

    def score_slack(self, smoothed: SmoothedScores) -> Float[Tensor, "n c"]:
        """By how much each test score may be off: here nothing."""
        return torch.zeros_like(smoothed.mean)

    def outputs(
        self, model: nn.Module, x: Float[Tensor, "n ..."], *, seed: int = 0, index: Int[Tensor, " n"] | None = None
    ) -> Outputs:
        """The model's outputs on ``n_samples`` noisy copies of each sample (see noisy_outputs)."""
        return noisy_outputs(model, x, sigma=self.sigma, draws=self.n_samples, seed=seed, index=index)

    def smooth(self, outputs: Outputs, *, seed: int = 0, stream: str = "sets") -> SmoothedScores:
        """Mean and variance of the scores over the noisy copies."""
        return self._smoothed(outputs, self.uniform(outputs, seed, stream))

    def single_scores(self, outputs: Outputs, y: Int[Tensor, " n"], *, seed: int = 0) -> Float[Tensor, " n"]:
        """Scores at label y of the *first* noisy copy alone, not transformed: what PTT is fitted on."""
        check_labels(type(self).__name__, y, len(outputs.logits), outputs.classes)
        scores = self._each(self._views(outputs)[:1], self.uniform(outputs, seed, "single"))[0]
        return scores.gather(1, y[:, None])[:, 0]

    def scores(self, outputs: Outputs, u: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return self._smoothed(outputs, u).mean

    def _smoothed(self, outputs: Outputs, u: Float[Tensor, "n 1"]) -> SmoothedScores:
        scores = self._each(self._views(outputs), u)
        return SmoothedScores.of(scores if self.transform is None else self.transform.transform(scores))

    def _views(self, outputs: Outputs) -> Float[Tensor, "v n c"]:
        if outputs.views is None:
            raise InputError(f"{type(self).__name__}: outputs have no views; expected logits (v, n, c) of noisy copies")
        return outputs.views

    def _each(self, views: Float[Tensor, "v n c"], u: Float[Tensor, "n 1"]) -> Float[Tensor, "v n c"]:
        """The base score of every copy, float64."""
        base = self.score if isinstance(self.score, SetPredictor) else SCORES[self.score]
        return base.scores(Outputs(views.flatten(0, 1)), u.repeat(len(views), 1)).reshape(views.shape)

    def fit(self, outputs: Outputs, y: Int[Tensor, " n"], *, seed: int = 0) -> FittedRSCP:
        """Calibrate on the views of unperturbed samples and their labels (n,) int64."""
        check_labels(type(self).__name__, y, len(outputs.logits), outputs.classes)
        return self.calibrate(self.smooth(outputs, seed=seed, stream="fit"), y, seed=seed)

    def calibrate(self, smoothed: SmoothedScores, y: Int[Tensor, " n"], *, seed: int = 0) -> FittedRSCP:
        """Calibrate on smoothed scores: the conformal quantile of those of y; infinite where there are too few."""
        check_labels(type(self).__name__, y, len(smoothed), smoothed.mean.shape[1])
        threshold, by_class = self.thresholds(smoothed.mean, y, self.miscoverage)
        return FittedRSCP(self, threshold, seed, by_class, self.calibration_slack(smoothed.draws))
