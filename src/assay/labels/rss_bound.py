"""How the excess risk of robust self-supervised training scales on a mixture of two Gaussians."""

from __future__ import annotations

import math
from typing import Literal

from assay.runtime.errors import InputError


def generalization_bound(
    kind: Literal["robust", "non-robust", "erm"],
    d: int,
    m: int,
    n: int,
    alpha: float,
    *,
    mu_norm: float = 1.0,
    sigma: float = 1.0,
    delta: float = 0.05,
    gamma: float = 1.0,
    constant: float = 1.0,
) -> float:
    """``constant`` x what stands within O(.) of the excess risk (Saberi et al., 2024, arXiv:2310.00027, Theorems 4.1
    and 4.2), at probability 1 - ``delta``; "erm" is sqrt(d / m), from labels alone.

    ``m`` labelled and ``n`` unlabelled samples in ``d`` dimensions; x given y is N(y mu, sigma^2 I) in both
    distributions but for ``alpha``, their distance; ``gamma`` enters the robust bound. The constants are not known: the
    value has a meaning in how it changes, and is no certificate. InputError for other numbers.
    """
    if min(d, m) < 1 or n < 0 or not (alpha >= 0 and min(mu_norm, sigma, gamma, constant) > 0 and 0 < delta < 1):
        given = f"d={d}, m={m}, n={n}, alpha={alpha}, mu_norm={mu_norm}, sigma={sigma}, delta={delta}, gamma={gamma}"
        raise InputError(
            f"generalization_bound: {given}; expected d, m >= 1, n, alpha >= 0, lengths > 0, 0 < delta < 1"
        )
    log, size = 2 * math.log(1 / delta), mu_norm**2 + sigma**2
    if kind == "erm":
        return constant * math.sqrt(d / m)
    if kind == "robust":
        shift = alpha * size + math.sqrt(2 * d / (2 * n + m)) + math.sqrt(log / (2 * n + m))
        return constant * (gamma * math.sqrt(2 * d / m * shift) + math.sqrt(log / m))
    if kind != "non-robust":
        raise InputError(f"generalization_bound: kind={kind!r}; expected robust, non-robust or erm")
    scale = math.exp(-(mu_norm**2) / (4 * sigma**2)) / math.sqrt(2 * sigma * math.sqrt(2 * math.pi))
    inside = size * 2 * d * alpha / m + 4 * d / m * math.sqrt((2 * d + log) / (2 * n + m))
    return constant * (scale * inside**0.25 + math.sqrt(log / m))
