"""How far a representation is ordered by a numeric label."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from assay.runtime.errors import InputError


def ordinality(z: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> float:
    """Spearman's correlation over all pairs of samples of the distances in ``z`` and in ``y``, in [-1, 1].

    1 where nearer in label is nearer in space. Wu et al. (2023, arXiv:2309.16633) ask for this order; the number is a
    plain reading of it. Takes n (n - 1) / 2 floats. Raises InputError for fewer than three samples, other shapes,
    values that are not finite, and where all labels or all points are equal.
    """
    points, labels = _checked("ordinality", z, y, 3)
    rows, columns = np.triu_indices(len(points), 1)
    x = torch.from_numpy(points)
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").numpy()[rows, columns]
    gap = np.abs(labels[rows] - labels[columns])
    if np.ptp(apart) == 0 or np.ptp(gap) == 0:
        raise InputError("ordinality: all distances are equal; expected points and labels that differ")
    return float(spearmanr(apart, gap).statistic)


def continuity(z: Float[Tensor, "n d"], y: Float[Tensor, " n"], k: int = 5) -> float:
    """Mean over samples of the variance of ``y`` among the ``k`` nearest others in ``z``, in squared units of y.

    0 where neighbours share their label. Raises InputError for k below 2 or not below n, and as ``ordinality``.
    """
    points, labels = _checked("continuity", z, y, 3)
    if not 2 <= k < len(points):
        raise InputError(f"continuity: k={k}; expected 2 to {len(points) - 1}")
    near = NearestNeighbors(n_neighbors=k).fit(points - points.mean(0)).kneighbors(return_distance=False)
    return float(labels[near].var(1).mean())


def _checked(where: str, z: Tensor, y: Tensor, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64."""
    if z.dim() != 2 or y.shape != z.shape[:1] or len(z) < least:
        raise InputError(f"{where}: {tuple(z.shape)}, labels {tuple(y.shape)}; expected (n, d) and (n,), n >= {least}")
    if not torch.isfinite(z).all() or not torch.isfinite(y).all():
        raise InputError(f"{where}: points or labels hold NaN or infinite values; expected finite")
    return z.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()
