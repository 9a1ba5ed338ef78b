"""How many points of a sample must be replaced before a statistic takes a given value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from assay.runtime.errors import InputError

Bounds = tuple[float, float]


def check_sample(where: str, x: np.ndarray, bounds: Bounds) -> Float[np.ndarray, " n"]:
    """``x`` (n,) sorted and clipped to ``bounds``, float64. InputError for another shape, NaN, n = 0 or bad bounds."""
    if not bounds[0] < bounds[1]:
        raise InputError(f"{where}: bounds {list(bounds)}; expected the lower one below the upper one")
    values = np.asarray(x, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"{where}: x has shape {values.shape}; expected (n,) with n >= 1")
    if np.isnan(values).any():
        raise InputError(f"{where}: x has {int(np.isnan(values).sum())} NaN; expected numbers")
    values = np.sort(values.clip(*bounds))
    if not np.isfinite(values).all():
        raise InputError(f"{where}: x holds infinite values within {list(bounds)}; expected finite ones")
    return values


@dataclass(frozen=True, kw_only=True)
class OrderStatistic:
    """A statistic of the sorted sample that is continuous and rises with every point.

    Replacing the j smallest points by the upper bound gives its largest value after j replacements, and all values down
    to the present one are reached on the way: the values within j replacements are an interval [lower_j, upper_j], and
    the path length len(S; t) is the least j whose interval holds t (Asi et al., 2023, arXiv:2302.01855, section 3;
    data sets have a fixed size, and neighbours differ in one replaced point). In the row (low, .., low, x_1 <= .. <=
    x_n, high, .., high) every window of n values is the sample after such replacements, so that a subclass states one
    thing: its values on all windows.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    def windows(self, row: Float[np.ndarray, " 3n"], n: int) -> Float[np.ndarray, " 2n+1"]:
        """The statistic of row[s : s + n] for s = 0 to 2n; infinite where it rests on an infinite value."""
        raise TypeError(f"{type(self).__name__} states no windows")

    def reach(
        self, x: Float[np.ndarray, " n"], bounds: Bounds
    ) -> tuple[Float[np.ndarray, " n+1"], Float[np.ndarray, " n+1"]]:
        """The ends (lower, upper) of the values within j = 0 to n replacements; ``bounds`` may be infinite."""
        x = check_sample(type(self).__name__, x, bounds)
        n = len(x)
        values = self.windows(np.concatenate((np.full(n, bounds[0]), x, np.full(n, bounds[1]))), n)
        # Sums of windows round: the ends are nested by what they are, so they are made so.
        return np.minimum.accumulate(values[n::-1]), np.maximum.accumulate(values[n:])

    def path_length(
        self, x: Float[np.ndarray, " n"], bounds: Bounds
    ) -> tuple[Float[np.ndarray, " 2n+2"], Float[np.ndarray, " 2n+1"]]:
        """Breakpoints, and the path length between them: n, .., 1, 0, 1, .., n; the piece of length 0 is a point."""
        lower, upper = self.reach(x, bounds)
        return np.concatenate((lower[::-1], upper)), np.abs(np.arange(-len(x), len(x) + 1.0))

    def length(self, x: Float[np.ndarray, " n"], t: Float[np.ndarray, " k"], bounds: Bounds) -> Int[np.ndarray, " k"]:
        """The path length at the points ``t`` themselves; n + 1 stands for values that are never reached."""
        lower, upper = self.reach(x, bounds)
        return np.maximum(np.searchsorted(upper, t, side="left"), np.searchsorted(-lower, -np.asarray(t), side="left"))

    def value(self, x: Float[np.ndarray, " n"]) -> float:
        """The statistic itself."""
        return float(self.reach(x, (-math.inf, math.inf))[1][0])


@dataclass(frozen=True, kw_only=True)
class Quantile(OrderStatistic):
    """The order statistic x_(k), k = floor(q (n - 1)) counted from 0; q = 0.5 is the lower median.

    Its path length is max(#{x < t} - k, k + 1 - #{x <= t}, 0). InputError for ``q`` outside [0, 1].
    """

    contract: ClassVar[bool] = False

    q: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise InputError(f"Quantile: q={self.q}; expected a number in [0, 1]")

    def windows(self, row: Float[np.ndarray, " 3n"], n: int) -> Float[np.ndarray, " 2n+1"]:
        k = math.floor(self.q * (n - 1) + 1e-9)
        return row[k : k + 2 * n + 1]


def _within(means: Float[np.ndarray, " m"], row: Float[np.ndarray, " 3n"]) -> Float[np.ndarray, " m"]:
    """``means`` of windows without the rounding of their sums where it shows: no mean leaves the row's range, and those
    of the first and the last window, whose values are all alike, are its ends. Neighbours share a support by this."""
    means = means.clip(row[0], row[-1])
    means[0], means[-1] = row[0], row[-1]
    return means


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(OrderStatistic):
    """The mean without the m = floor(trim n) smallest and largest; ``trim`` in [0, 0.5), 0 is the mean."""

    contract: ClassVar[bool] = False

    trim: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise InputError(f"{type(self).__name__}: trim={self.trim}; expected a number in [0, 0.5)")

    def cut(self, n: int) -> int:
        """m, how many points go on each side."""
        return math.floor(self.trim * n + 1e-9)

    def windows(self, row: Float[np.ndarray, " 3n"], n: int) -> Float[np.ndarray, " 2n+1"]:
        m, start = self.cut(n), np.arange(2 * n + 1)
        total = np.append(0.0, np.cumsum(np.where(np.isfinite(row), row, 0.0)))
        values = (total[start + n - m] - total[start + m]) / (n - 2 * m)
        values[(start + m < n) & np.isinf(row[0])] = -math.inf
        values[(start + n - m > 2 * n) & np.isinf(row[-1])] = math.inf
        return _within(values, row)


@dataclass(frozen=True, kw_only=True)
class WinsorisedMean(TrimmedMean):
    """The mean after the m = floor(trim n) smallest and largest are moved to the next point inwards."""

    contract: ClassVar[bool] = False

    def windows(self, row: Float[np.ndarray, " 3n"], n: int) -> Float[np.ndarray, " 2n+1"]:
        m, start = self.cut(n), np.arange(2 * n + 1)
        inner = super().windows(row, n)
        ends = row[start + m] + row[start + n - m - 1] if m else 0.0
        finite = np.isfinite(inner)
        inner[finite] = (((n - 2 * m) * inner + m * ends) / n)[finite]
        return _within(inner, row)


@dataclass(frozen=True, kw_only=True)
class ClippedMean(OrderStatistic):
    """The mean of the points clipped to [``low``, ``high``], which are fixed without a look at the data."""

    contract: ClassVar[bool] = False

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise InputError(f"ClippedMean: low={self.low}, high={self.high}; expected finite low < high")

    def windows(self, row: Float[np.ndarray, " 3n"], n: int) -> Float[np.ndarray, " 2n+1"]:
        return TrimmedMean(trim=0.0).windows(row.clip(self.low, self.high), n)
