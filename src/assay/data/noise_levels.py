"""The noise levels of a trajectory from noise to data."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def noise_levels(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " steps"]:
    """``steps`` levels from ``sigma_max`` down to ``sigma_min``, evenly spaced in sigma^(1 / ``rho``), float64.

    Karras et al., 2022, arXiv:2206.00364, eq. 5, without the 0 at its end. Raises InputError unless steps >= 2,
    0 < sigma_min < sigma_max and rho > 0.
    """
    if steps < 2 or not 0 < sigma_min < sigma_max < math.inf or not 0 < rho < math.inf:
        raise InputError(
            f"noise levels: steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}; "
            "expected steps >= 2, 0 < sigma_min < sigma_max, rho > 0"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho
