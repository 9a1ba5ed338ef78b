"""Inverse sensitivity without a range: approximate differential privacy by a test of stability."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from assay.privacy.differential.inverse_sensitivity import check_eps
from assay.privacy.differential.path_length import Bounds, OrderStatistic, Quantile
from assay.privacy.differential.piecewise_constant import PiecewiseConstant
from assay.runtime.errors import InputError
from assay.runtime.random import derive, numpy_rng


@dataclass(frozen=True, kw_only=True)
class TruncatedSensitivity:
    """(eps, delta)-DP without a bound on the output: inverse sensitivity on the values of path length up to ``cut``, or
    nothing where the sample is not stable (the approximate form of Asi et al., 2023, arXiv:2302.01855, section 3; the
    test and all constants are derived here, not the paper's).

    S is safe when the values of len_rho <= cut + 1 are at most ``ratio`` times as wide as 2 rho. ``margin(S)`` bounds
    from below how many points must be replaced before S is not safe, and moves by at most 1 between neighbours. With
    e = eps / 2 for each part:

    - a safe sample passes when margin + Laplace(1 / e) > 1 + log(1 / delta) / e, an unsafe one never: the neighbour of
      an unsafe sample has a margin of at most 1 and passes with probability at most delta / 2;
    - between safe neighbours, with cut = ceil((2 / e) log(2 ratio (1 + e^(e/2)) / delta)), values of one support
      outside the other have mass ratio e^(-e cut / 2) at most, the normalisers differ by a factor e^(e/2) (1 + ratio
      e^(-e (cut + 1) / 2)), and both together leave (e, delta / 2)-DP.

    ``bounds``, to which data are clipped, may be infinite. The width of the answer and so ``rho`` > 0, chosen without a
    look at the data, set the error; log R is replaced by log(1 / delta). InputError for eps <= 0, delta outside (0, 1),
    rho <= 0, ratio <= 1.
    """

    kind: ClassVar[str] = "function"

    estimator: OrderStatistic = field(default_factory=Quantile)
    eps: float = 1.0
    delta: float = 1e-6
    rho: float = 0.1
    ratio: float = 4.0
    bounds: Bounds = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        check_eps(type(self).__name__, self.eps, self.delta)
        if not (self.delta > 0 and 0 < self.rho < math.inf and 1 < self.ratio < math.inf):
            given = f"delta={self.delta}, rho={self.rho}, ratio={self.ratio}"
            raise InputError(f"{type(self).__name__}: {given}; expected delta > 0, rho > 0, ratio > 1, all finite")

    @property
    def cut(self) -> int:
        """The largest path length of a value that is given out."""
        half = self.eps / 2
        return math.ceil(2 / half * math.log(2 * self.ratio * (1 + math.exp(half / 2)) / self.delta))

    @property
    def threshold(self) -> float:
        """What the noisy margin must exceed."""
        return 1 + 2 / self.eps * math.log(1 / self.delta)

    def margin(self, x: Float[np.ndarray, " n"]) -> int:
        """A lower bound on the replacements that lead from ``x`` to a sample that is not safe; 0 where it is not."""
        lower, upper = self.estimator.reach(x, self.bounds)
        with np.errstate(invalid="ignore"):
            width = upper - lower + 2 * self.rho
        return int((width[self.cut + 1 :] <= 2 * self.ratio * self.rho).sum())

    def pass_probability(self, x: Float[np.ndarray, " n"]) -> float:
        """The probability that ``x`` passes the test."""
        margin = self.margin(x)
        return float(stats.laplace.sf(self.threshold, loc=margin, scale=2 / self.eps)) if margin else 0.0

    def density(self, x: Float[np.ndarray, " n"]) -> PiecewiseConstant:
        """The density of the output on ``x`` once it has passed; InputError where a bound within ``cut`` is infinite,
        which no safe sample has."""
        lower, upper = (ends[: self.cut + 1] for ends in self.estimator.reach(x, self.bounds))
        edges = np.concatenate((lower[::-1] - self.rho, upper + self.rho))
        return PiecewiseConstant(edges, -self.eps / 4 * np.abs(np.arange(1 - len(lower), len(lower))))

    def sample(self, x: Float[np.ndarray, " n"], *, seed: int) -> float | None:
        """One output on ``x``, or None where it does not pass."""
        margin, noise = self.margin(x), numpy_rng(seed, "stability").laplace(scale=2 / self.eps)
        if margin == 0 or margin + noise <= self.threshold:
            return None
        return float(self.density(x).sample(seed=derive(seed, "output"))[0])
