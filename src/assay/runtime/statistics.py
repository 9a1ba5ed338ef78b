"""Intervals. A statistic maps per-sample values (n, k) and weights (b, n) to (b,), so that a bootstrap is one call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from assay.runtime.random import numpy_rng

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
LEVEL = 0.95
LARGE = 50_000  # samples above which intervals are by little bootstraps
BAGS, DRAWS = 10, 100
WEIGHTS = 1 << 24  # weights held at once
NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    result = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(result.low), float(result.high)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of column 0."""
    return weights @ values[:, 0] / weights.sum(1)


def ratio(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of column 0 over weighted sum of column 1."""
    return (weights @ values[:, 0]) / np.maximum(weights @ values[:, 1], 1e-12)


def ece(values: np.ndarray, weights: np.ndarray, bins: int = 15) -> np.ndarray:
    """Expected calibration error with equal-width bins; columns: confidence, correct (Naeini et al., 2015)."""
    confidence, correct = values[:, 0], values[:, 1]
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.zeros((len(values), bins))
    gap[np.arange(len(values)), which] = confidence - correct
    return np.abs(weights @ gap).sum(1) / weights.sum(1)


def adaptive_ece(values: np.ndarray, weights: np.ndarray, bins: int = 15) -> np.ndarray:
    """Calibration error with bins of equal mass; columns: confidence, correct (Nguyen & O'Connor, 2015)."""
    order = np.argsort(values[:, 0], kind="stable")
    gap = (values[order, 0] - values[order, 1])[None] * weights[:, order]
    mass = np.cumsum(weights[:, order], 1)
    which = np.minimum(((mass - 0.5) / mass[:, -1:] * bins).astype(int).clip(0), bins - 1)
    rows = np.repeat(np.arange(len(weights)), gap.shape[1])
    sums = np.bincount(rows * bins + which.ravel(), gap.ravel(), minlength=len(weights) * bins)
    return np.abs(sums.reshape(-1, bins)).sum(1) / weights.sum(1)


def auroc(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve; columns: score, label (1 positive, 0 negative). Ties count half."""
    _, rank = np.unique(values[:, 0], return_inverse=True)
    k = rank.max() + 1
    order = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank[order], np.arange(k))
    label = values[order, 1]
    positive = np.add.reduceat(weights[:, order] * label, starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - label), starts, axis=1)
    below = np.cumsum(negative, 1) - negative
    pairs = np.maximum(positive.sum(1) * negative.sum(1), 1e-12)
    return (positive * (below + 0.5 * negative)).sum(1) / pairs


def worst_class(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The lowest accuracy over classes; columns: correct, class."""
    onehot = np.equal(values[:, 1:2], np.unique(values[:, 1])[None]).astype(float)
    total = weights @ onehot
    rate = np.where(total > 0, (weights @ (onehot * values[:, :1])) / np.maximum(total, 1e-12), np.inf)
    return rate.min(1)


def balanced(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean accuracy over classes; columns: correct, class."""
    onehot = np.equal(values[:, 1:2], np.unique(values[:, 1])[None]).astype(float)
    total = weights @ onehot
    rate = np.where(total > 0, (weights @ (onehot * values[:, :1])) / np.maximum(total, 1e-12), np.nan)
    return np.nanmean(rate, 1)


def gap(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of column 0 where column 1 is 1, less that where it is 0."""
    inside, outside = weights * values[:, 1], weights * (1 - values[:, 1])
    first, second = (w @ values[:, 0] / np.maximum(w.sum(1), 1e-12) for w in (inside, outside))
    return np.asarray(first - second)


STATISTICS: dict[str, Statistic] = {
    f.__name__: f for f in (mean, ratio, ece, adaptive_ece, auroc, worst_class, balanced, gap)
}


def resamples(n: int, seed: int, b: int = 1000) -> np.ndarray:
    """Bootstrap weights (b, n): how often each sample is drawn."""
    return numpy_rng(seed, "bootstrap", n).multinomial(n, np.full(n, 1.0 / n), size=b).astype(float)


def point(statistic: str, values: np.ndarray) -> float:
    """The statistic of the sample itself."""
    return float(STATISTICS[statistic](values, np.ones((1, len(values))))[0])


def _drawn(f: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> np.ndarray:
    """``f`` of 1000 bootstrap weights (b, n), as those of ``resamples``, a part of them at a time in flat memory."""
    rng, share = numpy_rng(seed, "bootstrap", n), np.full(n, 1.0 / n)
    step = max(WEIGHTS // n, 1)
    return np.concatenate(
        [f(rng.multinomial(n, share, size=min(step, 1000 - k)).astype(float)) for k in range(0, 1000, step)]
    )


def _little(f: Callable[[np.ndarray, np.ndarray], np.ndarray], n: int, seed: int) -> np.ndarray:
    """Deviations (bags, draws) of ``f(rows, weights)`` on resamples of size n from its value on small bags of rows.

    The bag of little bootstraps (Kleiner et al., 2014, arXiv:1112.5016, algorithm 1): a bag has n^0.6 of the samples
    (at least 5000), and each resample gives them n draws, so that its spread is that of a statistic of n.
    """
    rng, size = numpy_rng(seed, "little bootstraps", n), max(round(n**0.6), LARGE // BAGS)
    found = []
    for rows in rng.permutation(n)[: BAGS * size].reshape(BAGS, size):
        weights = rng.multinomial(n, np.full(size, 1.0 / size), size=DRAWS).astype(float)
        found.append(f(rows, weights) - f(rows, np.full((1, size), n / size)))
    return np.stack(found)


def bootstrap(
    statistic: str | Statistic, values: np.ndarray, *, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of per-sample values (n, k); above ``LARGE`` n by little bootstraps.

    A resample without a value (NaN) is left out. Time and memory of the latter grow with n^0.6.
    """
    f, tails = STATISTICS[statistic] if isinstance(statistic, str) else statistic, [(1 - level) / 2, (1 + level) / 2]
    if len(values) <= LARGE:
        low, high = np.nanquantile(_drawn(lambda w: np.asarray(f(values, w)), len(values), seed), tails)
        return float(low), float(high)
    value = f(values, np.ones((1, len(values))))[0]
    deviations = _little(lambda rows, w: np.asarray(f(values[rows], w)), len(values), seed)
    low, high = np.nanmean(np.nanquantile(deviations, tails, axis=1), 1)
    return float(value + low), float(value + high)


def named(n: int) -> str:
    """What the interval that ``bootstrap`` gives for n samples is called."""
    return "bootstrap 95%" if n <= LARGE else "little bootstraps 95%"


def paired_differences(
    statistic: str, before: np.ndarray, after: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float, float]:
    """As ``paired``, for any number of samples: above ``LARGE`` by little bootstraps."""
    if len(before) <= LARGE:
        return paired(statistic, before, after, seed=seed)
    f = STATISTICS[statistic]
    difference = point(statistic, after) - point(statistic, before)
    draws = _little(lambda rows, w: np.asarray(f(after[rows], w) - f(before[rows], w)), len(before), seed)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1).mean(1)
    error = draws.std(1).mean()
    p = 2 * stats.norm.sf(abs(difference) / error) if error > 0 else (1.0 if difference == 0 else 0.0)
    return difference, float(difference + low), float(difference + high), float(p)


def paired(
    statistic: str, before: np.ndarray, after: np.ndarray, *, seed: int = 0, level: float = LEVEL
) -> tuple[float, float, float, float]:
    """Difference after - before on the same samples: (difference, low, high, two-sided p).

    Both sides are resampled together, so what they share cancels. p is from the bootstrap's standard error.
    """
    f, weights = STATISTICS[statistic], resamples(len(before), seed)
    difference = point(statistic, after) - point(statistic, before)
    draws = f(after, weights) - f(before, weights)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    error = draws.std()
    p = 2 * stats.norm.sf(abs(difference) / error) if error > 0 else (1.0 if difference == 0 else 0.0)
    return difference, float(low), float(high), float(p)


def t_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of a mean over seeds."""
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def paired_resamples(
    before: float, after: float, draws_before: np.ndarray, draws_after: np.ndarray
) -> tuple[float, float, float, float]:
    """As ``paired``, from the metric's values on the same resamples: normal, with the error of their differences."""
    difference, error = after - before, float(np.std(draws_after - draws_before, ddof=1))
    p = 2 * stats.norm.sf(abs(difference) / error) if error > 0 else (1.0 if difference == 0 else 0.0)
    return difference, difference - NORMAL * error, difference + NORMAL * error, float(p)


def holm(p: np.ndarray, alpha: float = 1 - LEVEL) -> np.ndarray:
    """Which hypotheses Holm's step-down procedure rejects at family-wise level alpha (Holm, 1979)."""
    order = np.argsort(p)
    passed = p[order] <= alpha / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), bool)
    rejected[order] = np.cumprod(passed).astype(bool)
    return rejected
