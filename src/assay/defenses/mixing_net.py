"""The network that weighs an accurate against a robust classifier for each input."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.spec import rebuildable


class PreActBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, with a shortcut (He et al., 2016, arXiv:1603.05027)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        around = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return around + self.conv2(F.relu(self.bn2(self.conv1(active))))


@rebuildable
class MixingNet(nn.Module):
    """Features of both models at two depths -> one number a sample (Bai et al., 2023, arXiv:2301.12554, section 4.1).

    ``net(first, second)``: first (n, ``channels[0]``, h, w) are the features of both models at the shallower depth, one
    after the other, second (n, ``channels[1]``, h / 2, w / 2) those of the deeper one. A stage of two pre-activation
    blocks with stride 2 takes first to the size of second; second is added, and two more such stages of ``widths``, the
    mean over space and a linear layer without bias follow. With ``reduced`` second passes a 1x1 convolution to that
    many channels before (the official code's version 4, for large models); without, it is version 3.
    """

    def __init__(
        self, channels: tuple[int, int], widths: tuple[int, int] = (64, 128), reduced: int | None = None
    ) -> None:
        super().__init__()
        middle = channels[1] if reduced is None else reduced
        self.reduce = nn.Identity() if reduced is None else nn.Conv2d(channels[1], reduced, 1, bias=False)
        sizes = (channels[0], middle, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(PreActBlock(a, b, 2), PreActBlock(b, b, 1)) for a, b in pairwise(sizes)
        )
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, first: Float[Tensor, "n c1 h w"], second: Float[Tensor, "n c2 h2 w2"]) -> Float[Tensor, " n"]:
        z = self.stages[0](first) + self.reduce(second)
        for stage in list(self.stages)[1:]:
            z = stage(z)
        return self.head(torch.mean(z, (2, 3)))[:, 0]
