"""How flat the spectrum of features is, and how far one direction dominates it."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from assay.runtime.errors import InputError


def singular_value_entropy(features: Any, *, center: bool = False) -> float:
    """- sum_i p_i log p_i, p_i = s_i / sum s, of the singular values of features (m, d) (Chen et al., 2024,
    arXiv:2309.17002, the singular value entropy, SVE). In nats, from 0 (rank 1) to log rank.

    Features are taken as they are; with ``center`` as the official code prepares them: rows of unit length, each less
    the mean of its own entries. InputError for features that are not finite, not (m, d), or all zero.
    """
    p = _shares("singular_value_entropy", features, center)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def largest_singular_value_ratio(features: Any, *, center: bool = False) -> float:
    """- log(s_1 / sum_i s_i) of the singular values of features (m, d) (Chen et al., 2024, arXiv:2309.17002, LSVR).

    From 0 (rank 1) to log rank: the larger, the less one direction dominates. Preparation and errors as
    ``singular_value_entropy``.
    """
    return float(-np.log(_shares("largest_singular_value_ratio", features, center)[0]) + 0.0)


def _shares(where: str, features: Any, center: bool) -> Float[np.ndarray, " k"]:
    """The singular values, decreasing, divided by their sum."""
    x = np.asarray(features, dtype=float)
    if x.ndim != 2 or 0 in x.shape or not np.isfinite(x).all():
        raise InputError(f"{where}: features {x.shape} or not finite; expected finite (m, d) with m, d >= 1")
    if center:
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(lengths > 0, lengths, 1.0)
        x = x - x.mean(1, keepdims=True)
    s = np.linalg.svd(x, compute_uv=False)
    if not s.sum() > 0:
        raise InputError(f"{where}: every singular value is 0; expected features that differ from 0")
    return s / s.sum()
