"""From robust to private and back: the estimator, the error that robustness predicts, and the converse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from assay.privacy.differential.inverse_sensitivity import WIDTH, InverseSensitivity, check_eps
from assay.privacy.differential.path_length import Bounds, OrderStatistic, Quantile
from assay.privacy.differential.truncated_sensitivity import TruncatedSensitivity
from assay.runtime.errors import InputError
from assay.runtime.random import derive


@dataclass(frozen=True, eq=False)
class PrivateEstimate:
    """``estimate_`` is a number, or (d,) for d columns, NaN where a column did not pass the test of stability.

    ``clipped_``, how many values lay outside the bounds, is not private and not for release.
    """

    estimate_: float | Float[np.ndarray, " d"]
    clipped_: int


@dataclass(frozen=True, kw_only=True)
class RobustToPrivate:
    """A robust statistic made (eps, delta)-DP (Asi et al., 2023, arXiv:2302.01855): ``fit(x, seed=).estimate_``.

    ``delta`` = 0: InverseSensitivity on ``bounds``; ``delta`` > 0: TruncatedSensitivity, for which bounds may be
    infinite. Of points (n, d) every column is estimated by itself at eps / d and delta / d, which together cost eps and
    delta. ``rho``, which must not depend on the data, is 1e-5 of the width of the bounds unless given, and needed where
    delta > 0. InputError as theirs.
    """

    kind: ClassVar[str] = "function"

    estimator: OrderStatistic = field(default_factory=Quantile)
    eps: float = 1.0
    delta: float = 0.0
    bounds: Bounds = (-1.0, 1.0)
    rho: float | None = None

    def __post_init__(self) -> None:
        check_eps("RobustToPrivate", self.eps, self.delta)
        if self.delta > 0 and self.rho is None:
            raise InputError("RobustToPrivate: delta > 0 without rho; expected the width that the answer may have")
        self._mechanism(1)

    def _mechanism(self, d: int) -> InverseSensitivity | TruncatedSensitivity:
        width = WIDTH * (self.bounds[1] - self.bounds[0]) if self.rho is None else self.rho
        if self.delta == 0:
            return InverseSensitivity(estimator=self.estimator, eps=self.eps / d, bounds=self.bounds, rho=width)
        return TruncatedSensitivity(
            estimator=self.estimator, eps=self.eps / d, delta=self.delta / d, rho=width, bounds=self.bounds
        )

    def fit(self, x: Float[np.ndarray, n * d], *, seed: int) -> PrivateEstimate:
        """The private estimate of the sample ``x`` (n,) or (n, d)."""
        points = np.asarray(x, np.float64)
        if points.ndim not in (1, 2) or points.size == 0:
            raise InputError(f"RobustToPrivate: x has shape {points.shape}; expected (n,) or (n, d), not empty")
        columns = points.reshape(len(points), -1).T
        mechanism = self._mechanism(len(columns))
        drawn = [self._draw(mechanism, column, derive(seed, k)) for k, column in enumerate(columns)]
        outside = int(((points < self.bounds[0]) | (points > self.bounds[1])).sum())
        return PrivateEstimate(drawn[0] if points.ndim == 1 else np.array(drawn), outside)

    def _draw(self, mechanism: InverseSensitivity | TruncatedSensitivity, x: np.ndarray, seed: int) -> float:
        if isinstance(mechanism, InverseSensitivity):
            return float(mechanism.sample(x, seed=seed)[0])
        found = mechanism.sample(x, seed=seed)
        return math.nan if found is None else found


def predicted_error(alpha: Callable[[float], float], n: int, d: int, eps: float, radius: float, beta: float) -> float:
    """2 a, where a = alpha(tau) and n tau = (2 / eps) (d log((R + a) / a) + log(1 / beta)), R = ``radius``.

    ``alpha(tau)``, which rises, bounds the error of a robust estimator under a fraction tau of corrupted points with
    probability 1 - ``beta``; its private form with rho = a errs by more than 2 a with probability at most 2 beta
    (Asi et al., 2023, arXiv:2302.01855, section 3; the constants are those of the short proof in
    InverseSensitivity.error_bound, not the paper's). math.inf where no a up to R is enough. InputError for numbers
    that are not positive, or beta not below 1.
    """
    check_eps("predicted_error", eps)
    if n < 1 or d < 1 or not 0 < radius < math.inf or not 0 < beta < 1:
        given = f"n={n}, d={d}, radius={radius}, beta={beta}"
        raise InputError(f"predicted_error: {given}; expected positive numbers and beta in (0, 1)")

    def excess(log_a: float) -> float:
        tau = 2 / (n * eps) * (d * math.log1p(radius / math.exp(log_a)) - math.log(beta))
        return min(alpha(tau), 2 * radius) - math.exp(log_a)

    low, high = math.log(radius) - 60, math.log(radius)
    if excess(high) > 0:
        return math.inf
    return 2 * math.exp(brentq(excess, low, high, xtol=1e-12)) if excess(low) > 0 else 2 * math.exp(low)


def robustness_from_privacy(eps: float, beta0: float, beta: float) -> int:
    """How many corrupted points an eps-DP estimator stands: floor(log(beta / beta0) / eps).

    If it errs by more than some alpha with probability ``beta0`` at most, then with k points replaced with probability
    e^(eps k) beta0 at most (group privacy; Asi et al., 2023, arXiv:2302.01855): this is ``beta`` at most up to the
    returned k. InputError unless 0 < beta0 <= beta < 1.
    """
    check_eps("robustness_from_privacy", eps)
    if not 0 < beta0 <= beta < 1:
        raise InputError(f"robustness_from_privacy: beta0={beta0}, beta={beta}; expected 0 < beta0 <= beta < 1")
    return math.floor(math.log(beta / beta0) / eps + 1e-12)
