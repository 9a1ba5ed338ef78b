"""Signed miscalibration: whether a model says too much or too little, overall and class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from assay.calibrate.measures import Array, _checked, top
from assay.runtime.errors import InputError, unknown


def miscalibration_score(probabilities: Array, y: Array, *, n_bins: int = 15) -> float:
    """MCS = sum_b (n_b / n) (conf_b - acc_b) over equal-width bins of the top class (Ao et al., 2023, UAI; Ao, 2023,
    arXiv:2308.03176): above 0 over-confident, below 0 under-confident, in [-1, 1].

    |MCS| <= ECE, with equality where all bins err to one side. The sum telescopes: MCS is the mean confidence less the
    accuracy, whatever the bins. The official code leaves out a confidence of 0, which no top class has. InputError as
    for ``ece``.
    """
    values = top(*_checked("miscalibration_score", probabilities, y, n_bins))
    return float(signed_gaps(values, np.zeros(len(values), int), 1, n_bins)[0])


def classwise_miscalibration(
    probabilities: Array, y: Array, *, by: Literal["true", "predicted"] = "true", n_bins: int = 15
) -> Float[np.ndarray, " c"]:
    """MCS of the samples of each class, by their true class as in the official code, or by the predicted one (another
    number). InputError as for ``ece``, and for a class without samples.
    """
    p, labels = _checked("classwise_miscalibration", probabilities, y, n_bins)
    if by not in ("true", "predicted"):
        raise unknown("by of classwise_miscalibration", by, ("true", "predicted"))
    groups = labels if by == "true" else p.argmax(1)
    missing = np.flatnonzero(np.bincount(groups, minlength=p.shape[1]) == 0)
    if len(missing):
        raise InputError(f"classwise_miscalibration: no sample of {by} class {missing[0]}; expected one of every class")
    return signed_gaps(top(p, labels), groups, p.shape[1], n_bins)


@dataclass(frozen=True)
class MiscalibrationSummary:
    """Of class-wise scores: ``score`` as the official code sums them up, the means of the over- and of the
    under-confident classes (NaN where there is none), and the share of classes that are over-confident (MCS >= 0)."""

    score: float
    over: float
    under: float
    share_over: float


def summarise(scores: Float[np.ndarray, " c"]) -> MiscalibrationSummary:
    """(sum of the scores >= 0 times their number + sum of the others times theirs) / c, and its parts (the official
    code of Ao et al., 2023). InputError for scores that are not (c,) or not finite."""
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise InputError(f"summarise: scores {scores.shape} or not finite; expected finite (c,), c >= 1")
    over, under = scores[scores >= 0], scores[scores < 0]
    score = (over.sum() * len(over) + under.sum() * len(under)) / len(scores)
    high, low = (float(part.mean()) if len(part) else float("nan") for part in (over, under))
    return MiscalibrationSummary(float(score), high, low, len(over) / len(scores))


def signed_gaps(values: np.ndarray, groups: np.ndarray, count: int, bins: int) -> Float[np.ndarray, " g"]:
    """Sum over bins of n_b (conf_b - acc_b) / n within each group; 0 for an empty one. Columns: confidence, correct."""
    which = np.clip(np.ceil(values[:, 0] * bins).astype(int) - 1, 0, bins - 1)
    sums = np.bincount(groups * bins + which, values[:, 0] - values[:, 1], count * bins).reshape(count, bins)
    return sums.sum(1) / np.maximum(np.bincount(groups, minlength=count), 1)
