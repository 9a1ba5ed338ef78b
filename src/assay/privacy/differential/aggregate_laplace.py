"""Mean responses of bags under label differential privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from assay.losses import optimal_interpolation
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng


@dataclass(frozen=True)
class BagSize:
    """The bag size ``k`` of least risk, the interpolation ``rho`` and ``risk`` there, and the risk of every size."""

    k: int
    rho: float
    risk: float
    curve: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class AggregateLaplace:
    """Release the mean responses of disjoint bags with Laplace noise (Javanmard et al., 2024, arXiv:2401.11081).

    Responses are clipped to [-``clip``, clip]; changing one (neighbours differ in one response, none is added) moves
    one mean by at most 2 clip / k, so that noise of scale 2 clip / (k ``eps``) makes the release eps-label-DP. eps > 0,
    clip > 0; else InputError.
    """

    eps: float = 1.0
    clip: float = 3.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps > 0 and math.isfinite(self.clip) and self.clip > 0):
            raise InputError(f"AggregateLaplace: eps={self.eps}, clip={self.clip}; expected finite numbers > 0")

    def scale(self, size: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """The scale of the noise on the mean of bags of these sizes."""
        return 2 * self.clip / (size * self.eps)

    def release(self, y: Float[np.ndarray, " n"], bag: Int[np.ndarray, " n"], *, seed: int) -> Float[np.ndarray, " m"]:
        """The noisy means (m,) of the bags 0 to m - 1; InputError for a gap or a response that is not finite."""
        y, bag = np.asarray(y, float), np.asarray(bag)
        if y.ndim != 1 or len(y) == 0 or bag.shape != y.shape or bag.dtype.kind not in "iu" or not np.isfinite(y).all():
            raise InputError(
                f"AggregateLaplace: y {y.shape}, bag {bag.dtype} {bag.shape}; expected finite y and integers (n,)"
            )
        size = np.bincount(bag[bag >= 0]).astype(float)
        if bag.min() < 0 or (size == 0).any():
            raise InputError(f"AggregateLaplace: bags {bag.min()} to {bag.max()}; expected 0 to m - 1 without gaps")
        means = np.bincount(bag, np.clip(y, -self.clip, self.clip)) / size
        return means + numpy_rng(seed, "aggregate laplace").laplace(size=len(size)) * self.scale(size)

    def effective_noise(self, k: int, sigma2: float) -> float:
        """The noise variance of single responses that bags of ``k`` would need to be as noisy: sigma2 + 2 k scale^2."""
        return sigma2 + 2 * k * float(self.scale(np.array([k]))[0]) ** 2


def optimal_bag_size(
    mechanism: AggregateLaplace, n: int, d: int, *, sigma2: float = 1.0, theta_norm2: float = 1.0
) -> BagSize:
    """The bag size, among the divisors k of ``n``, of least risk at its best interpolation in [0, 1].

    The risk is that of linear regression in ``d`` dimensions in the proportional limit (``interpolated_risk``) with the
    mechanism's noise; clipping is taken to change nothing. Raises InputError where n <= d.
    """
    if not 1 <= d < n:
        raise InputError(f"optimal_bag_size: n={n}, d={d}; expected 1 <= d < n")
    sizes = (k for k in range(1, n + 1) if n % k == 0)
    found = {k: optimal_interpolation(d, n // k, k, mechanism.effective_noise(k, sigma2), theta_norm2) for k in sizes}
    best = min(found, key=lambda k: found[k].risk)
    return BagSize(best, found[best].rho, found[best].risk, {k: f.risk for k, f in found.items()})
