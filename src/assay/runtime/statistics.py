"""Intervals. A statistic maps per-sample values (n, k) and weights (b, n) to (b,), so that a bootstrap is one call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from assay.runtime import calibration_error
from assay.runtime.random import numpy_rng

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
LEVEL = 0.95
LARGE = 50_000  # samples above which intervals are by little bootstraps
BAGS, DRAWS = 10, 100
FEW = 30  # samples of the rarest group in a bag, below which little bootstraps do not see its spread
WEIGHTS = 1 << 24  # weights held at once
NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    result = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(result.low), float(result.high)


def worst_rate(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """An interval that holds the lowest of several rates at least with ``level``; columns: correct (0 or 1), class.

    Below it is the least of the classes' limits by Clopper and Pearson (1934): that of the class which is truly lowest
    is among them. Above it is the least limit with the error divided by the number of classes, as each has to hold.
    """
    _, which, sizes = np.unique(values[:, 1], return_inverse=True, return_counts=True)
    each = [stats.binomtest(int(k), int(n)) for k, n in zip(np.bincount(which, values[:, 0]), sizes, strict=True)]
    apart = 1 - (1 - level) / len(each)
    limits = [(t.proportion_ci(level, "exact").low, t.proportion_ci(apart, "exact").high) for t in each]
    return float(min(low for low, _ in limits)), float(min(high for _, high in limits))


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of column 0."""
    return weights @ values[:, 0] / weights.sum(1)


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """``top / bottom``, NaN where ``bottom`` is 0."""
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def ratio(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of column 0 over weighted sum of column 1 (at least 0); NaN where that is 0."""
    return _over(weights @ values[:, 0], weights @ values[:, 1])


def ece(values: np.ndarray, weights: np.ndarray, bins: int = 15) -> np.ndarray:
    """Expected calibration error with equal-width bins; columns: confidence, correct (Naeini et al., 2015)."""
    confidence, correct = values[:, 0], values[:, 1]
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.zeros((len(values), bins))
    gap[np.arange(len(values)), which] = confidence - correct
    return np.abs(weights @ gap).sum(1) / weights.sum(1)


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of ``values``, ascending, and the places in it where another value begins."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)


def adaptive_ece(values: np.ndarray, weights: np.ndarray, bins: int = 15) -> np.ndarray:
    """Calibration error with bins of equal mass; columns: confidence, correct (Nguyen & O'Connor, 2015).

    Samples of one confidence share a bin, the one of the middle of their mass.
    """
    order, starts = _ties(values[:, 0])
    gap = np.add.reduceat(weights[:, order] * (values[order, 0] - values[order, 1]), starts, axis=1)
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    mass = np.cumsum(tied, 1)
    which = np.minimum(((mass - tied / 2) / mass[:, -1:] * bins).astype(int), bins - 1)
    rows = np.repeat(np.arange(len(weights)), gap.shape[1])
    sums = np.bincount(rows * bins + which.ravel(), gap.ravel(), minlength=len(weights) * bins)
    return np.abs(sums.reshape(-1, bins)).sum(1) / weights.sum(1)


def auroc(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve; columns: score, label (1 positive, 0 negative). Ties count half; NaN of one label."""
    order, starts = _ties(values[:, 0])
    label = values[order, 1]
    positive = np.add.reduceat(weights[:, order] * label, starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - label), starts, axis=1)
    below = np.cumsum(negative, 1) - negative
    return _over((positive * (below + 0.5 * negative)).sum(1), positive.sum(1) * negative.sum(1))


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
    """Mean of column 0 where column 1 is 1, less that where it is 0; NaN where it is only one of them."""
    inside, outside = weights * values[:, 1], weights * (1 - values[:, 1])
    first, second = (_over(w @ values[:, 0], w.sum(1)) for w in (inside, outside))
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
    """``f`` of 1000 bootstrap weights (b, n), as those of ``resamples``, a part of them at a time in flat memory.

    200 of them above ``LARGE`` n.
    """
    rng, share, draws = numpy_rng(seed, "bootstrap", n), np.full(n, 1.0 / n), 1000 if n <= LARGE else 200
    step = max(WEIGHTS // n, 1)
    return np.concatenate(
        [f(rng.multinomial(n, share, size=min(step, draws - k)).astype(float)) for k in range(0, draws, step)]
    )


def _in_bags(statistic: str | Statistic, values: np.ndarray) -> bool:
    """Whether little bootstraps are for these values: many, and some of each group that column 1 tells apart."""
    n = len(values)
    if n <= LARGE or statistic in ("mean", "ece", "adaptive_ece"):
        return n > LARGE
    if statistic == "ratio":
        rarest = int(np.count_nonzero(values[:, 1]))
    else:
        rarest = int(np.unique(values[:, 1], return_counts=True)[1].min())
    return rarest * _bag(n) >= FEW * n


def _bag(n: int) -> int:
    return max(round(n**0.6), LARGE // BAGS)


def _little(f: Callable[[np.ndarray, np.ndarray], np.ndarray], n: int, seed: int) -> np.ndarray:
    """Deviations (bags, draws) of ``f(rows, weights)`` on resamples of size n from its value on small bags of rows.

    The bag of little bootstraps (Kleiner et al., 2014, arXiv:1112.5016, algorithm 1): a bag has n^0.6 of the samples
    (at least 5000), and each resample gives them n draws, so that its spread is that of a statistic of n.
    """
    rng, size = numpy_rng(seed, "little bootstraps", n), _bag(n)
    found = []
    for rows in rng.permutation(n)[: BAGS * size].reshape(BAGS, size):
        weights = rng.multinomial(n, np.full(size, 1.0 / size), size=DRAWS).astype(float)
        found.append(f(rows, weights) - f(rows, np.full((1, size), n / size)))
    return np.stack(found)


def _limits(draws: np.ndarray, level: float) -> np.ndarray:
    """The two quantiles of ``draws`` (b,) around ``level``, those without a value (NaN) left out."""
    known = draws[~np.isnan(draws)]
    return np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else np.full(2, np.nan)


def bootstrap(
    statistic: str | Statistic, values: np.ndarray, *, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of per-sample values (n, k).

    Above ``LARGE`` n by little bootstraps, whose time and memory grow with n^0.6, unless a group that the statistic
    tells apart is too rare for them. A resample without a value (NaN) is left out. The lower limit of ``ece`` and
    ``adaptive_ece`` is ``calibration_error.lower_limit``.
    """
    f = STATISTICS[statistic] if isinstance(statistic, str) else statistic
    value = f(values, np.ones((1, len(values))))[0]
    if _in_bags(statistic, values):
        deviations = _little(lambda rows, w: np.asarray(f(values[rows], w)), len(values), seed)
        low, high = value + np.mean([_limits(bag, level) for bag in deviations], 0)
    else:
        low, high = _limits(_drawn(lambda w: np.asarray(f(values, w)), len(values), seed), level)
    if isinstance(statistic, str) and statistic in calibration_error.BINNED:
        low, high = calibration_error.lower_limit(statistic, values, seed=seed, level=level), max(high, value)
    return float(low), float(high)


def named(statistic: str | Statistic, values: np.ndarray) -> str:
    """What the interval that ``bootstrap`` gives for these values is called."""
    plain = "little bootstraps 95%" if _in_bags(statistic, values) else "bootstrap 95%"
    return f"halves and {plain}" if statistic in calibration_error.BINNED else plain


def named_difference(statistic: str) -> str:
    """What the interval that ``paired_differences`` gives is called."""
    return "paired halves 95%" if statistic in calibration_error.BINNED else "paired bootstrap 95%"


def paired_differences(
    statistic: str, before: np.ndarray, after: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float, float]:
    """As ``paired``, for any number of samples: above ``LARGE`` by little bootstraps where ``bootstrap`` is.

    Those of ``ece`` and ``adaptive_ece`` are ``calibration_error.difference``.
    """
    if statistic in calibration_error.BINNED:
        return calibration_error.difference(statistic, before, after, seed=seed)
    if not (_in_bags(statistic, before) and _in_bags(statistic, after)):
        return paired(statistic, before, after, seed=seed)
    f = STATISTICS[statistic]
    difference = point(statistic, after) - point(statistic, before)
    draws = _little(lambda rows, w: np.asarray(f(after[rows], w) - f(before[rows], w)), len(before), seed)
    low, high = np.mean([_limits(bag, LEVEL) for bag in draws], 0)
    p = _p_value(statistic, before, after, difference, float(np.nanstd(draws, axis=1).mean()))
    return difference, float(difference + low), float(difference + high), p


def paired(
    statistic: str, before: np.ndarray, after: np.ndarray, *, seed: int = 0, level: float = LEVEL
) -> tuple[float, float, float, float]:
    """Difference after - before on the same samples: (difference, low, high, two-sided p).

    Both sides are resampled together, so what they share cancels. p is McNemar's exact one for rates, else from the
    bootstrap's standard error.
    """
    f, difference = STATISTICS[statistic], point(statistic, after) - point(statistic, before)
    draws = _drawn(lambda w: np.asarray(f(after, w) - f(before, w)), len(before), seed)
    low, high = _limits(draws, level)
    error = float(draws[~np.isnan(draws)].std())
    return difference, float(low), float(high), _p_value(statistic, before, after, difference, error)


def _p_value(statistic: str, before: np.ndarray, after: np.ndarray, difference: float, error: float) -> float:
    if statistic == "mean" and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        better, worse = int((after > before).sum()), int((after < before).sum())
        return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return float(2 * stats.norm.sf(abs(difference) / error)) if error > 0 else float(difference == 0)


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
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error > 0 else float(difference == 0)
    return difference, difference - NORMAL * error, difference + NORMAL * error, p


def holm(p: np.ndarray, alpha: float = 1 - LEVEL) -> np.ndarray:
    """Which hypotheses Holm's step-down procedure rejects at family-wise level alpha (Holm, 1979)."""
    order = np.argsort(p)
    passed = p[order] <= alpha / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), bool)
    rejected[order] = np.cumprod(passed).astype(bool)
    return rejected
