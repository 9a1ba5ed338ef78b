"""The contrastive loss of pairs in a batch."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def info_nce(f: Float[Tensor, "n d"], g: Float[Tensor, "n d"], tau: float = 0.2) -> Float[Tensor, ""]:
    """Mean over i of log sum_j exp(cos(f_i, g_j) / tau) - cos(f_i, g_i) / tau (van den Oord et al., 2018,
    arXiv:1807.03748, eq. 4): row i of ``f`` belongs to row i of ``g``, the other rows of ``g`` are its negatives.

    At least 0. Gradients pass through both. Raises InputError unless both are (n, d) with n >= 2 and tau > 0.
    """
    if f.dim() != 2 or f.shape != g.shape or len(f) < 2:
        raise InputError(f"info_nce: {tuple(f.shape)} and {tuple(g.shape)}; expected the same (n, d) with n >= 2")
    if not 0 < tau < math.inf:
        raise InputError(f"info_nce: tau={tau}; expected a finite number > 0")
    near = F.normalize(f, dim=1) @ F.normalize(g, dim=1).T / tau
    return (near.logsumexp(1) - near.diagonal()).mean()
