"""Sharpened predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SMALL = 1e-6  # a sum of powers below it has lost digits, or is 0


def sharpened(p: Float[Tensor, "b c"], temperature: float) -> Float[Tensor, "b c"]:
    """p^(1 / ``temperature``) with rows that sum to 1 at any temperature > 0; towards 0 the largest class alone."""
    power = p ** (1 / temperature)
    kept = power.sum(1, keepdim=True) > SMALL
    return torch.where(kept, F.normalize(power, p=1, dim=1), (p.log() / temperature).softmax(1))
