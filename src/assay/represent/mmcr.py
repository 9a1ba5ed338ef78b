"""The loss that spreads the means of views and so packs the views of each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def mmcr_loss(views: Float[Tensor, "n k d"]) -> Float[Tensor, ""]:
    """- |C|_*, the sum of the singular values of the means of each sample's k views, which are brought to norm 1 first
    (Yerxa et al., 2023, arXiv:2303.03307: maximum manifold capacity representations).

    From -sqrt(n min(n, d)), all views of a sample the same and the means spread evenly, to 0. Raises InputError unless
    n, k and d are at least 1 and the views are finite.
    """
    if views.dim() != 3 or not views.numel() or not torch.isfinite(views).all():
        raise InputError(f"mmcr_loss: views of shape {tuple(views.shape)}; expected finite (n, k, d), none of them 0")
    return -torch.linalg.matrix_norm(F.normalize(views, dim=2).mean(1), "nuc")
