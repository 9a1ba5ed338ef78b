"""Structured pruning at random: what a score of channels must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.compress.channel_graph import Space
from assay.compress.channel_pruning import Calibration, ChannelPruning
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class RandomChannels(ChannelPruning):
    """Keep channels drawn at random. Fields, ranges and errors: see ChannelPruning."""

    def scores(self, model: nn.Module, space: Space, given: Calibration) -> Float[Tensor, " c"]:
        """Uniform numbers."""
        generator = torch_rng(given.seed, "channels", *space.consumers)
        return torch.rand(space.channels, generator=generator, dtype=torch.float64)
