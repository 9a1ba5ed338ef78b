"""The Frechet distance between two sets of features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (Heusel et al., 2017, arXiv:1706.08500).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), eq. 6, with A, B the sample covariances; tr (A B)^(1/2) is the sum of
    the singular values of A^(1/2) B^(1/2), so that no complex root is taken. Always >= 0, 0 for equal sets, in squared
    units of the features, computed in float64. Raises InputError for features that are not finite or not (n, d) with
    n >= 2 and the same d.
    """
    for name, features in (("a", a), ("b", b)):
        check_inputs(f"frechet_distance ({name})", features)
        if features.dim() != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            raise InputError(
                f"frechet_distance: {name} has shape {tuple(features.shape)}; expected (n >= 2, d), same d"
            )
    x, y = a.double(), b.double()
    root_x, root_y = _root(x), _root(y)
    overlap = torch.linalg.svdvals(root_x @ root_y).sum()
    spread = root_x.square().sum() + root_y.square().sum() - 2 * overlap
    return max(float((x.mean(0) - y.mean(0)).square().sum() + spread), 0.0)


def _root(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root of the covariance of ``x``."""
    values, vectors = torch.linalg.eigh(torch.atleast_2d(x.T.cov()))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
