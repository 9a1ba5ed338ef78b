"""Intervals of binned calibration errors, ``ece`` and ``adaptive_ece``, and of their differences.

Such an error is the sum over bins of |mean confidence - accuracy|, weighted by the bins' shares. The absolute values
turn noise into error: the sample's value lies above the population's, that of a resample further above, so that
percentiles of a bootstrap leave out a true 0 and a bootstrap of differences prefers the model whose bins are noisier.
Here the sign of each bin's gap is taken from one half of the sample and the gap from the other: the sum of signed gaps
is in expectation at most the error, and with signs from the same samples at least (Jensen), whatever the gaps are.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from assay.runtime.random import numpy_rng

BINNED = ("ece", "adaptive_ece")
BINS = 15
HALVES = (1 + 2 / np.pi) ** 0.5  # both halves' sums hold the sizes of the gaps: without any gap they correlate by 2/pi


def _bins(statistic: str, confidence: np.ndarray) -> np.ndarray:
    """The bin (n,) of each sample, as ``statistics.ece`` and ``statistics.adaptive_ece`` have it."""
    if statistic == "ece":
        return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    middle = (stats.rankdata(confidence) - 0.5) / len(confidence)
    return np.minimum((middle * BINS).astype(int), BINS - 1)


def _signed(statistic: str, values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (n,): each sample's gap with the sign of its bin's in the whole sample, and with that in the other half."""
    gap, which = values[:, 0] - values[:, 1], _bins(statistic, values[:, 0])
    half = numpy_rng(seed, "halves", len(gap)).permutation(len(gap)) % 2
    sums = np.bincount(half * BINS + which, gap, 2 * BINS).reshape(2, BINS)
    return np.sign(sums.sum(0))[which] * gap, np.sign(sums[::-1])[half, which] * gap


def _error(signed: np.ndarray) -> float:
    """The standard error of the mean of signed gaps, with one wrong answer more than was seen."""
    return HALVES * float(np.square(signed - signed.mean()).sum() + 1) ** 0.5 / len(signed)


def lower_limit(statistic: str, values: np.ndarray, *, seed: int = 0, level: float = 0.95) -> float:
    """The lower end of a two-sided interval of the error, at least 0; columns: confidence, correct."""
    _, apart = _signed(statistic, values, seed)
    return max(float(apart.mean()) - float(stats.norm.ppf((1 + level) / 2)) * _error(apart), 0.0)


def difference(
    statistic: str, before: np.ndarray, after: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float, float]:
    """Error after less error before on the same samples: (difference, low, high, two-sided p).

    Each end holds one model's error with signs of the same samples against the other's with signs of the other half;
    p is the level at which the interval begins to hold 0.
    """
    if np.array_equal(before, after):
        return 0.0, 0.0, 0.0, 1.0
    (b, b_apart), (a, a_apart) = (_signed(statistic, v, seed) for v in (before, after))
    least, most = a_apart - b, a - b_apart
    z = float(stats.norm.ppf((1 + level) / 2))
    low, high = float(least.mean()) - z * _error(least), float(most.mean()) + z * _error(most)
    beyond = max(float(least.mean()) / _error(least), -float(most.mean()) / _error(most))
    return float(a.mean() - b.mean()), low, high, min(float(2 * stats.norm.sf(beyond)), 1.0)
