"""Structured pruning by the size of filters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.compress.channel_graph import Space
from assay.compress.channel_pruning import Calibration, ChannelPruning


def filters(model: nn.Module, space: Space) -> list[Float[Tensor, "c d"]]:
    """The filters that write a set of channels, one row a channel, of each layer that does."""
    modules = dict(model.named_modules())
    weights: list[Tensor] = [modules[name].weight for name in space.producers]
    return [w.detach().double().flatten(1) for w in weights]


@dataclass(frozen=True, kw_only=True)
class L1Channels(ChannelPruning):
    """Keep the channels whose filters have the largest l1 norm (Li et al., 2017, arXiv:1608.08710, section 3.1).

    The norms of a set that several layers write are added. Fields, ranges and errors: see ChannelPruning.
    """

    def scores(self, model: nn.Module, space: Space, given: Calibration) -> Float[Tensor, " c"]:
        """The norms of the filters."""
        return torch.stack([w.abs().sum(1) for w in filters(model, space)]).sum(0)
