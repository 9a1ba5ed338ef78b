"""Weight quantisation."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.compress.base import MAX_BITS, Compressor, weights_of
from assay.data import Data
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Quantisation(Compressor):
    """Symmetric round-to-nearest weights with one scale a channel (Krishnamoorthi, 2018, arXiv:1806.08342, section 2).

    Every weight w of a convolutional or linear layer becomes k * scale with k = round(w / scale), scale = max|w| over
    its output channel / (2^(bits - 1) - 1): |k| <= 2^(bits - 1) - 1, |error| <= scale / 2. Simulated: the weights keep
    their type and hold values of the grid, found in float64 and rounded to that type. ``bits`` in 2..16; the rest is
    untouched; no data used.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= MAX_BITS:
            raise InputError(f"Quantisation: bits={self.bits}; expected an integer from 2 to {MAX_BITS}")

    @torch.no_grad()
    def compress(self, model: nn.Module, data: Data | None, *, seed: int) -> nn.Module:
        """A copy of ``model`` with quantised weights."""
        quantised = copy.deepcopy(model)
        weights = weights_of(quantised)
        if not weights:
            raise InputError("Quantisation: the model has no convolutional or linear layer to quantise")
        for weight in weights.values():
            weight.copy_(quantise(weight, self.bits)[0])
        return quantised.eval()


def quantise(weight: Float[Tensor, "out ..."], bits: int) -> tuple[Float[Tensor, "out ..."], Float[Tensor, "out ..."]]:
    """Values on the grid in the type of ``weight``, and the scale of each output channel, float64 (broadcastable; 1
    where the channel is zero)."""
    wide = weight.double()
    top = wide.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    limit = 2 ** (bits - 1) - 1
    scale = top / limit
    scale = scale.where(scale > 0, torch.ones_like(scale))
    return ((wide / scale).round().clamp(-limit, limit) * scale).to(weight), scale
