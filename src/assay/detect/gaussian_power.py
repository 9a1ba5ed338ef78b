"""Detecting a shift of a Gaussian: the most powerful score, and the powers of it and of the Mahalanobis distance."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from assay.runtime.errors import InputError


def _check(where: str, size: float | np.ndarray, alpha: float) -> None:
    if not 0 < alpha < 1 or not np.all(np.asarray(size) >= 0):
        raise InputError(f"{where}: delta_maha={size}, alpha={alpha}; expected delta_maha >= 0 and 0 < alpha < 1")


def optimal_lr_score(
    z: Float[Tensor, "n d"], mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], delta: Float[Tensor, " d"]
) -> Float[Tensor, " n"]:
    """delta^T Sigma^{-1} (z - mu): rises with the likelihood ratio of N(mu + delta, Sigma) to N(mu, Sigma), and so is
    the most powerful score where the shift is known (Neyman-Pearson; Xian et al., 2023). InputError for a covariance
    that is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) != 0:
        raise InputError("optimal_lr_score: the covariance is singular; expected a positive definite one")
    return (z - mean) @ torch.cholesky_solve(delta[:, None], factor)[:, 0]


def lr_power(delta_maha: float, alpha: float) -> float:
    """Its power at false-positive rate ``alpha``: Phi(D - Phi^{-1}(1 - alpha)), D^2 = delta^T Sigma^{-1} delta."""
    _check("lr_power", delta_maha, alpha)
    return float(stats.norm.cdf(delta_maha - stats.norm.isf(alpha)))


def mahalanobis_power(delta_maha: float, d: int, alpha: float) -> float:
    """Power of (z - mu)^T Sigma^{-1} (z - mu): a chi-square of ``d`` degrees, shifted by D^2, over its quantile."""
    _check("mahalanobis_power", delta_maha, alpha)
    if d < 1:
        raise InputError(f"mahalanobis_power: d={d}; expected at least 1")
    limit = stats.chi2.isf(alpha, d)
    return float(stats.ncx2.sf(limit, d, delta_maha**2) if delta_maha > 0 else alpha)
