"""The smoothed inverse-sensitivity mechanism: any statistic made private, as well as it is robust."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from assay.privacy.differential.path_length import Bounds, OrderStatistic, Quantile, TrimmedMean, check_sample
from assay.privacy.differential.piecewise_constant import PiecewiseConstant
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng

WIDTH = 1e-5  # smoothing radius over the width of the range, where none is given


def check_eps(where: str, eps: float, delta: float = 0.0) -> None:
    """0 < eps < inf and 0 <= delta < 1."""
    if not 0 < eps < math.inf or not 0 <= delta < 1:
        raise InputError(f"{where}: eps={eps}, delta={delta}; expected finite eps > 0 and delta in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class InverseSensitivity:
    """eps-DP for any statistic A: draw t with density in proportion to exp(-eps len_rho(S; t) / 2) (Asi et al., 2023,
    arXiv:2302.01855, section 3).

    len(S; t) is how many points of S must be replaced before A takes the value t (``estimator.path_length``), len_rho
    its least value within ``rho`` of t, and t lies in ``bounds``, to which data are clipped. Both are chosen without a
    look at the data. Replacing one point moves len_rho by at most 1, so that weight and normaliser each move by a
    factor e^(eps/2) at most, robust statistic or not; neighbours replace a point, and n is public. Without
    smoothing ties take all width from the best values: rho > 0 is for data with atoms. Draws are floating-point
    numbers, whose low bits can tell more than eps; ``snap`` > 0 rounds them to its multiples. InputError for eps <= 0,
    rho < 0, infinite or inverted bounds, samples that are empty or hold NaN.
    """

    kind: ClassVar[str] = "function"

    estimator: OrderStatistic = field(default_factory=Quantile)
    eps: float = 1.0
    bounds: Bounds = (-1.0, 1.0)
    rho: float = 0.0
    snap: float = 0.0

    def __post_init__(self) -> None:
        check_eps(type(self).__name__, self.eps)
        if not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
            raise InputError(f"{type(self).__name__}: bounds={self.bounds}; expected finite low < high")
        if not (0 <= self.rho < math.inf and 0 <= self.snap < math.inf):
            raise InputError(f"{type(self).__name__}: rho={self.rho}, snap={self.snap}; expected finite, >= 0")

    def log_weight(self, length: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """The log weight of values at path length ``length``."""
        return -self.eps * length / 2

    def density(self, x: Float[np.ndarray, " n"]) -> PiecewiseConstant:
        """The density of the output on the sample ``x`` (n,)."""
        edges, lengths = self.estimator.path_length(x, self.bounds)
        least = int(lengths.argmin())
        # Values within j replacements are an interval: smoothing moves its ends outwards by rho.
        moved = np.concatenate((edges[: least + 1] - self.rho, edges[least + 1 :] + self.rho))
        return PiecewiseConstant(moved.clip(*self.bounds), self.log_weight(lengths))

    def sample(self, x: Float[np.ndarray, " n"], *, seed: int, size: int = 1) -> Float[np.ndarray, " size"]:
        """``size`` outputs on ``x``; together they cost size x eps."""
        drawn = self.density(x).sample(size, seed=seed)
        return np.round(drawn / self.snap) * self.snap if self.snap else drawn

    def error_bound(self, alpha: Callable[[float], float], n: int, beta: float) -> float:
        """What the error exceeds with probability at most 2 beta: alpha(tau) + rho, n tau = (2 / eps) (log((R + rho) /
        rho) + log(1 / beta)), 2 R the width of the range.

        ``alpha(tau)`` bounds the statistic's own error when a fraction tau of n points is corrupted, with probability
        1 - beta. Values within rho of A(S) have weight 1 and width 2 rho; those beyond alpha + rho have a weight below
        exp(-eps n tau / 2) and a width below 2 (R + rho). For A(S) at least rho inside the bounds, rho > 0.
        """
        if not (0 < beta < 1 and n >= 1 and self.rho > 0):
            raise InputError(f"error_bound: beta={beta}, n={n}, rho={self.rho}; expected 0 < beta < 1, n >= 1, rho > 0")
        radius = (self.bounds[1] - self.bounds[0]) / 2
        return alpha(2 / (n * self.eps) * (math.log((radius + self.rho) / self.rho) - math.log(beta))) + self.rho


def _private(
    x: np.ndarray, estimator: OrderStatistic, eps: float, bounds: Bounds, rho: float | None, seed: int
) -> float:
    width = WIDTH * (bounds[1] - bounds[0]) if rho is None else rho
    mechanism = InverseSensitivity(estimator=estimator, eps=eps, bounds=bounds, rho=width)
    return float(mechanism.sample(x, seed=seed)[0])


def private_quantile(
    x: Float[np.ndarray, " n"], q: float, eps: float, bounds: Bounds, rho: float | None = None, *, seed: int
) -> float:
    """An eps-DP quantile in ``bounds``; ``rho`` is 1e-5 of their width unless given. See InverseSensitivity."""
    return _private(x, Quantile(q=q), eps, bounds, rho, seed)


def private_median(
    x: Float[np.ndarray, " n"], eps: float, bounds: Bounds, rho: float | None = None, *, seed: int
) -> float:
    """An eps-DP lower median in ``bounds``; ``rho`` is 1e-5 of their width unless given. See InverseSensitivity."""
    return _private(x, Quantile(q=0.5), eps, bounds, rho, seed)


def private_trimmed_mean(
    x: Float[np.ndarray, " n"], eps: float, trim: float, bounds: Bounds, rho: float | None = None, *, seed: int
) -> float:
    """An eps-DP mean without the fraction ``trim`` at each end, in ``bounds``; ``rho`` as in private_median."""
    return _private(x, TrimmedMean(trim=trim), eps, bounds, rho, seed)


def laplace_mean(x: Float[np.ndarray, " n"], eps: float, bounds: Bounds, *, seed: int) -> float:
    """The baseline: the mean of data clipped to ``bounds`` plus Laplace noise of scale width / (n eps) (Dwork et al.,
    2006, "Calibrating noise to sensitivity in private data analysis"); eps-DP.
    InputError for bounds that are infinite or inverted."""
    check_eps("laplace_mean", eps)
    if not all(map(math.isfinite, bounds)):
        raise InputError(f"laplace_mean: bounds {list(bounds)}; expected finite ones, whose width scales the noise")
    values = check_sample("laplace_mean", x, bounds)
    scale = (bounds[1] - bounds[0]) / (len(values) * eps)
    return float(values.mean() + numpy_rng(seed, "laplace").laplace(scale=scale))
