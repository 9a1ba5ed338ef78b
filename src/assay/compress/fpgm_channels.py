"""Structured pruning by the geometric median."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.compress.channel_graph import Space
from assay.compress.channel_pruning import Calibration, ChannelPruning
from assay.compress.l1_channels import filters


@dataclass(frozen=True, kw_only=True)
class FPGMChannels(ChannelPruning):
    """Drop the filters nearest to the others of their layer, which these can replace (He et al., 2019,
    arXiv:1811.00250, equation 8).

    The score of a filter is the sum of its Euclidean distances to the rest, added over the layers that write a set.
    Fields, ranges and errors: see ChannelPruning.
    """

    def scores(self, model: nn.Module, space: Space, given: Calibration) -> Float[Tensor, " c"]:
        """The filters' distances to one another."""
        return torch.stack([torch.cdist(w, w).sum(1) for w in filters(model, space)]).sum(0)
