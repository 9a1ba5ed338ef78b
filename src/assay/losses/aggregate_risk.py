"""The risk of linear regression from bags, in the limit of many samples and dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from assay.runtime.errors import InputError


class Risk(NamedTuple):
    """Squared bias and variance; their sum is the mean squared distance from the true coefficients."""

    bias: float
    variance: float


class Interpolation(NamedTuple):
    """The best rho and the risk at it."""

    rho: float
    risk: float


def interpolated_risk(d: int, m: int, k: int, rho: float, sigma2: float = 1.0, theta_norm2: float = 1.0) -> Risk:
    """E ||theta_hat - theta_0||^2 of the interpolated estimator without intercept, as d, m grow in proportion.

    The model of Javanmard et al. (2024, arXiv:2401.11081): y = x^T theta_0 + noise, x ~ N(0, I_d), noise variance
    ``sigma2``, m random bags of k. The scaled bag means Z (m, d) and the scatter W ~ Wishart(m(k-1)) are independent,
    so that theta_hat = (Z^T Z + rho W)^-1 Z^T y. With t > 0 the root of

        d = m t / (1 + t) + m (k - 1) rho t / (1 + rho t),   D = m / (1 + t)^2 + m (k - 1) rho / (1 + rho t)^2,
        variance = sigma2 m t / (1 + t)^2 / D,
        bias = |theta_0|^2 / d [d - 2 m t / (1 + t) + F t / D],   F = m [m (1 - t) / (1 + t)^3 + d / (1 + t)^2].

    This is our derivation by deterministic equivalents, checked by simulation; the paper's theorem may be written
    otherwise. Raises InputError unless d, m, k >= 1, rho, sigma2, theta_norm2 >= 0, all finite, and d < m (rho = 0 or
    k = 1) or d < m k.
    """
    within = m * (k - 1) if rho > 0 else 0
    if min(d, m, k) < 1 or not all(math.isfinite(v) and v >= 0 for v in (rho, sigma2, theta_norm2)):
        given = f"d={d}, m={m}, k={k}, rho={rho}, sigma2={sigma2}, theta_norm2={theta_norm2}"
        raise InputError(f"interpolated_risk: {given}; expected d, m, k >= 1 and finite numbers >= 0")
    if d >= m + within:
        raise InputError(f"interpolated_risk: d={d} with m={m}, k={k}, rho={rho}; expected d below the number of rows")
    # The equation times (1 + t)(1 + rho t) is a t^2 + b t + d = 0 with a <= 0: one root is positive.
    a, b = rho * (d - m - within), d * (1 + rho) - m - within * rho
    t = 2 * d / (-b + math.sqrt(b * b - 4 * a * d))
    slope = m / (1 + t) ** 2 + within * rho / (1 + rho * t) ** 2
    f = m * (m * (1 - t) / (1 + t) ** 3 + d / (1 + t) ** 2)
    bias = theta_norm2 / d * (d - 2 * m * t / (1 + t) + f * t / slope)
    return Risk(max(bias, 0.0), sigma2 * m * t / (1 + t) ** 2 / slope)


def optimal_interpolation(d: int, m: int, k: int, sigma2: float = 1.0, theta_norm2: float = 1.0) -> Interpolation:
    """The rho in [0, 1] of least risk; errors as of ``interpolated_risk`` (rho = 0 is left out where m <= d).

    Bags of one have no scatter: rho is then 0.
    """
    if k == 1:
        return Interpolation(0.0, sum(interpolated_risk(d, m, k, 0.0, sigma2, theta_norm2)))

    def risk(log_rho: float) -> float:
        return sum(interpolated_risk(d, m, k, math.exp(log_rho), sigma2, theta_norm2))

    grid = np.linspace(math.log(1e-6), 0.0, 81)
    values = [risk(u) for u in grid]
    i = int(np.argmin(values))
    ends = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    found = minimize_scalar(risk, bounds=ends, method="bounded", options={"xatol": 1e-6})
    best = min((Interpolation(math.exp(u), r) for u, r in ((found.x, found.fun), (grid[i], values[i]))), key=_risk)
    if d < m:
        best = min(best, Interpolation(0.0, sum(interpolated_risk(d, m, k, 0.0, sigma2, theta_norm2))), key=_risk)
    return best


def _risk(found: Interpolation) -> float:
    return found.risk
