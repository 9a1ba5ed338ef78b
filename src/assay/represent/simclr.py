"""SimCLR: two views of an image find each other among all other views of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.losses import InfoNCE
from assay.represent.two_views import TwoViews
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class SimCLR(TwoViews):
    """Chen et al., 2020, arXiv:2002.05709, algorithm 1; ``fit`` as in TwoViews.

    NT-Xent: the mean over all 2n views of the cross-entropy of its partner among the 2n - 1 others, their cosines
    divided by ``temperature`` (0.5 as for CIFAR-10, appendix B.9; 0.1 for ImageNet). What is used downstream is
    ``backbone``, below the projection head (section 4.2).
    """

    temperature: float = 0.5

    def loss(self, model: nn.Module, one: Tensor, two: Tensor, state: State) -> Tensor:
        z1, z2 = model(torch.cat((one, two))).chunk(2)
        return InfoNCE(self.temperature, "views", symmetric=True)(z1, z2)
