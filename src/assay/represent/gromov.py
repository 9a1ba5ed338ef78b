"""How much like a tree a set of features is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def gromov_delta(features: Float[Tensor, "n d"], *, points: int = 1500, tries: int = 10, seed: int = 0) -> float:
    """Relative delta-hyperbolicity, mean over ``tries`` draws of at most ``points`` rows (Khrulkov et al., 2020,
    arXiv:1904.02239, section 3.2; the first row drawn is the base point).

    delta = max over pairs of (max over k of min(A_ik, A_kj)) - A_ij with Gromov products A; here over the diameter, so
    in [0, 1/2] up to rounding and 0 for trees (some papers give 2 delta / diameter). Needs points^2 numbers. InputError
    for fewer than 2 rows, or equal ones.
    """
    check_inputs("gromov_delta", features)
    if features.dim() != 2 or len(features) < 2 or points < 2 or tries < 1:
        shape = tuple(features.shape)
        raise InputError(f"gromov_delta: {shape}, points={points}, tries={tries}; expected (n, d), all n, points >= 2")
    found = []
    for k in range(tries):
        rows = torch.randperm(len(features), generator=torch_rng(seed, "gromov", k))[:points]
        x = features[rows].double()
        found.append(_relative(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")))
    return sum(found) / tries


def _relative(distance: Float[Tensor, "n n"]) -> float:
    diameter = float(distance.max())
    if not diameter > 0:
        raise InputError("gromov_delta: all rows are equal; expected different ones")
    product = (distance[:, :1] + distance[:1] - distance) / 2
    best = torch.stack([torch.minimum(row[None, :], product).amax(1) for row in product])
    return float((best - product).max()) / diameter
