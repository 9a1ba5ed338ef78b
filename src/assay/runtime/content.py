"""Names for samples that follow from what they hold: random draws that stay with an input, wherever it stands."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.random import Draws, derive


def content_index(x: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """A non-negative int64 for each row, a hash of its float32 bits: equal for equal rows, in any batch and order.

    Sums of the bits under random odd weights, modulo 2**64, of which 63 bits are kept; it is no cryptographic hash.
    """
    bits = (x.detach().cpu().float().flatten(1) + 0.0).contiguous().view(torch.int32).long()
    draws = Draws(derive(0, "content"), "weights", torch.arange(bits.shape[1]))
    weights = (draws.integers(2**31 - 1) << 32) | (draws.integers(2**31 - 1) << 1) | 1
    total = ((bits ^ (bits << 17)) * weights).sum(1)
    return ((total ^ (total >> 29)) * 0x5851F42D4C957F2D) & 0x7FFFFFFFFFFFFFFF


def content_draws(seed: int, stream: str, x: Float[Tensor, "n ..."]) -> Draws:
    """A stream for each input that depends on (seed, stream, the input) alone."""
    return Draws(seed, stream, content_index(x))
