"""The simplex equiangular tight frame."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def simplex_etf(num_classes: int, dim: int, *, scale: float = 1.0, seed: int = 0) -> Float[Tensor, "k d"]:
    """Rows e_1 .. e_K of equal norm ``scale`` and pairwise cosine -1/(K-1) (Papyan et al., 2020, arXiv:2008.08186).

    E = scale sqrt(K/(K-1)) (I - 11^T/K) U^T with orthonormal U, so E E^T = scale^2 K/(K-1) (I - 11^T/K); float64.
    I - 11^T/K is B B^T with an orthonormal B (K, K-1), and U B is drawn as one random orthonormal (dim, K-1): that
    serves dim = K - 1 as well. Raises InputError for K < 2, dim < K - 1 (no such frame), or scale <= 0.
    """
    if num_classes < 2 or dim < num_classes - 1:
        raise InputError(f"simplex_etf: {num_classes} classes in dimension {dim}; expected K >= 2 and dim >= K - 1")
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"simplex_etf: scale={scale}; expected a finite number > 0")
    k = num_classes
    centred = torch.eye(k, dtype=torch.float64) - 1 / k
    basis = torch.linalg.qr(centred[:, : k - 1]).Q
    draw = torch.randn(dim, k - 1, generator=torch_rng(seed, "simplex-etf", k, dim), dtype=torch.float64)
    return scale * math.sqrt(k / (k - 1)) * basis @ torch.linalg.qr(draw).Q.T
