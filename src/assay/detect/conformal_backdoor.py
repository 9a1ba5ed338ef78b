"""Thresholds on any detector's score that bound its false-positive rate from a few clean samples."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.shrunk_mahalanobis import ShrunkMahalanobis
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown

Guarantee = Literal["pac", "beta", "marginal"]
GUARANTEES = ("pac", "beta", "marginal")
ROUNDING = 1e-9  # of a rank: n (1 - alpha) may be a whole number


def _check(n: int, alpha: float, delta: float, one_sided: bool) -> None:
    if n < 1 or not 0 < alpha < 1 or not 0 < delta < 1 or (one_sided and delta > 0.5):
        raise InputError(
            f"conformal: n={n}, alpha={alpha}, delta={delta}; expected n >= 1, alpha and delta in (0, 1), and delta at "
            "most 1/2 where one_sided"
        )


def dkw_level(n: int, alpha: float, delta: float = 0.05, *, one_sided: bool = False) -> float:
    """1 - alpha + sqrt(ln(2 / delta) / (2 n)): what the empirical distribution must reach at the threshold.

    By the inequality of Dvoretzky, Kiefer and Wolfowitz the false-positive rate is then at most ``alpha`` with
    probability 1 - ``delta`` over the n clean samples. ``one_sided`` takes ln(1 / delta) (Massart, 1990; delta <= 1/2).
    """
    _check(n, alpha, delta, one_sided)
    return 1 - alpha + math.sqrt(math.log((1 if one_sided else 2) / delta) / (2 * n))


def conformal_rank(
    n: int, alpha: float, *, delta: float = 0.05, method: Guarantee = "pac", one_sided: bool = False
) -> int:
    """Which of n clean scores in ascending order, counted from 1, is the threshold; n + 1 where none bounds the rate.

    - "pac": the least rank whose share of n reaches ``dkw_level``: rate <= alpha with probability 1 - delta.
    - "beta": the least k with P(Beta(k, n + 1 - k) >= 1 - alpha) >= 1 - delta: the same promise from the exact law of
      an order statistic, for continuous scores (an addition to the paper).
    - "marginal": ceil((n + 1)(1 - alpha)): rate <= alpha on average over the clean samples.
    """
    _check(n, alpha, delta, one_sided)
    if method not in GUARANTEES:
        raise unknown("guarantee", method, GUARANTEES)
    if method == "marginal":
        rank = math.ceil((n + 1) * (1 - alpha) - ROUNDING)
    elif method == "beta":
        ranks = np.arange(1, n + 1)
        enough = stats.beta.sf(1 - alpha, ranks, n + 1 - ranks) >= 1 - delta
        rank = int(ranks[enough][0]) if enough.any() else n + 1
    else:
        rank = math.ceil(n * dkw_level(n, alpha, delta, one_sided=one_sided) - ROUNDING)
    return min(rank, n + 1)


def conformal_threshold(
    scores: Float[np.ndarray, " n"],
    alpha: float,
    *,
    delta: float = 0.05,
    method: Guarantee = "pac",
    one_sided: bool = False,
) -> float:
    """The clean score above which an input is flagged; infinite, with a warning, where n is too small for any."""
    values = np.sort(np.asarray(scores, dtype=float))
    if np.isnan(values).any():
        raise InputError(f"conformal: {int(np.isnan(values).sum())} of {len(values)} scores are NaN; expected numbers")
    rank = conformal_rank(len(values), alpha, delta=delta, method=method, one_sided=one_sided)
    if rank > len(values):
        warnings.warn(
            f"conformal: {len(values)} clean samples are too few for alpha={alpha} ({method}); nothing is flagged",
            stacklevel=2,
        )
        return math.inf
    return float(values[rank - 1])


def conformal_pvalues(clean: Float[np.ndarray, " n"], scores: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """(1 + #{clean >= score}) / (n + 1) for each score: uniform or larger for a clean input."""
    above = len(clean) - np.searchsorted(np.sort(clean), scores, side="left")
    return (1 + above) / (len(clean) + 1)


@dataclass(kw_only=True)
class FittedConformal(FittedDetector):
    """Fitted detectors whose ``reference_`` are the calibration scores, and the threshold of each in ``thresholds_``.

    The score of one detector is its own; that of several is minus the logarithm of their joint p-value.
    """

    parts_: tuple[FittedDetector, ...] = ()
    thresholds_: tuple[float, ...] = ()
    combine: Literal["any", "all"] = "any"

    @property
    def networks(self) -> nn.ModuleList:
        """Those of all detectors."""
        return nn.ModuleList(part.networks for part in self.parts_)

    @property
    def threshold_(self) -> float:
        """The threshold of the only detector."""
        if len(self.thresholds_) != 1:
            raise InputError(f"threshold_: there are {len(self.thresholds_)} detectors; expected one, see thresholds_")
        return self.thresholds_[0]

    def _each(self, x: Tensor) -> list[np.ndarray]:
        return [part.scores(x).numpy() for part in self.parts_]

    def joint(self, columns: list[np.ndarray]) -> Float[np.ndarray, " n"]:
        """The p-value of each sample from every detector's scores: min(1, K least) for "any", the largest for "all"."""
        p = np.stack([conformal_pvalues(part.reference_, c) for part, c in zip(self.parts_, columns, strict=True)])
        return p.max(0) if self.combine == "all" else np.minimum(1.0, len(p) * p.min(0))

    def of_columns(self, columns: list[np.ndarray]) -> Float[np.ndarray, " n"]:
        """The score of each sample from every detector's scores."""
        return columns[0] if len(columns) == 1 else -np.log(self.joint(columns))

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        return torch.from_numpy(self.of_columns(self._each(x)))

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.parts_[0].graph(x) if len(self.parts_) == 1 else super().graph(x)

    def pvalue(self, x: Float[Tensor, "n ..."]) -> Float[np.ndarray, " n"]:
        """How rarely a clean input is as abnormal: P(p <= alpha) <= alpha, averaged over the calibration samples."""
        return self.joint(self._each(self.check(x)))

    def predict(self, x: Float[Tensor, "n ..."]) -> Bool[np.ndarray, " n"]:
        """Which inputs are flagged: those whose score lies above the threshold (of any or all detectors)."""
        above = np.stack([c > t for c, t in zip(self._each(self.check(x)), self.thresholds_, strict=True)])
        return np.asarray(above.all(0) if self.combine == "all" else above.any(0))


@dataclass(frozen=True, kw_only=True)
class ConformalDetector(Detector):
    """Conformal backdoor detection, CBD (Xian et al., 2023, A Unified Detection Framework for Inference-Stage Backdoor
    Defenses): transformation and score of ``detectors``, thresholds from clean samples.

    ``fit(model, data, holdout)`` fits the detectors to ``data`` and reads the thresholds from ``holdout``; without one
    ``data`` are split in half by ``seed``, because scores of the samples that a detector learned from are too low and
    the promise would be void. For exchangeable clean inputs the false-positive rate is at most ``alpha``, in the sense
    of ``method`` (see conformal_rank; ``delta``, ``one_sided`` belong to it); nothing is promised about power, nor
    under a shift of the clean data. An input is flagged above its threshold, not at it, so ties do no harm.

    Several detectors: "any" flags what one of them flags at alpha / K and delta / K (Bonferroni), "all" what every one
    flags at alpha. Shapes and errors: see Detector; a warning, and an infinite threshold, where n is too small.
    """

    finds: ClassVar[tuple[str, ...]] = ("shifts", "triggers")

    detectors: tuple[Detector, ...] = (ShrunkMahalanobis(),)
    alpha: float = 0.05
    delta: float = 0.05
    method: Guarantee = "pac"
    one_sided: bool = False
    combine: Literal["any", "all"] = "any"
    seed: int = 0

    def fit(self, model: nn.Module, data: Data, holdout: Data | None = None) -> FittedConformal:
        if not self.detectors or self.combine not in ("any", "all"):
            raise InputError(
                f"ConformalDetector: {len(self.detectors)} detectors, combine={self.combine!r}; expected at least one, "
                "'any' or 'all'"
            )
        check_inputs("ConformalDetector", data.x, data.y, data.bounds)
        first, second = data.split(0.5, seed=self.seed) if holdout is None else (data, holdout)
        parts = tuple(replace(d, batch_size=self.batch_size).fit(model, first, second) for d in self.detectors)
        k = len(parts) if self.combine == "any" else 1
        fitted = FittedConformal(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            threshold_from_="fit data" if holdout is None else "holdout",
            dtype_=data.x.dtype,
            parts_=parts,
            thresholds_=tuple(self._threshold(p.reference_, k) for p in parts),
            combine=self.combine,
        )
        fitted.reference_ = fitted.of_columns([p.reference_ for p in parts])
        return fitted

    def _threshold(self, clean: np.ndarray, k: int) -> float:
        return conformal_threshold(
            clean, self.alpha / k, delta=self.delta / k, method=self.method, one_sided=self.one_sided
        )
