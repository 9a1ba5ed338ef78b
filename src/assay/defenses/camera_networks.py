"""The two networks between shown colours and a camera's RAW: F, which guesses the capture, and G, which shows it."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.spec import rebuildable


def _conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """A convolution that starts as the identity plus torch's random weights, and ReLU."""
    conv = nn.Conv2d(channels, out, 3, stride, 1)
    with torch.no_grad():
        conv.weight += nn.init.dirac_(torch.empty_like(conv.weight))
    return nn.Sequential(conv, nn.ReLU())


@rebuildable
class RGBToRawNet(nn.Module):
    """F of Zhang et al. (2022, arXiv:2112.09219), as in the official code: five 3 x 3 convolutions of ``width`` maps,
    each with ReLU, the last one too. Images (n, 3, h, w) to packed RAW (n, 4, h / scale, w / scale), not below 0.

    ``scale`` 2 moves 2 x 2 pixels into channels first, for RAW half as large. The last bias starts at 0.5: a channel
    that is 0 on every image has no slope.
    """

    def __init__(self, width: int = 64, scale: int = 1) -> None:
        super().__init__()
        sizes = [3 * scale**2, width, width, width, width, 4]
        layers = [_conv(a, b) for a, b in pairwise(sizes)]
        self.body = nn.Sequential(nn.PixelUnshuffle(scale), *layers)
        self._brighten(cast(nn.Conv2d, layers[-1][0]), min(sizes[0], width))

    @staticmethod
    @torch.no_grad()
    def _brighten(last: nn.Conv2d, passed: int) -> None:
        """Half the mean of the channels that pass the image on, with little else, in each channel of RAW."""
        last.weight *= 0.1
        last.weight[:, :passed, 1, 1] += 0.5 / passed
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 4 a b"]:
        return self.body(x)


@rebuildable
class LearnedISP(nn.Module):
    """G: packed RAW (n, 4, a, b) to images (n, 3, scale a, scale b) in (0, 1), by a U-Net of two levels. a and b even.

    It stands in for the PyNET of five levels that the paper uses, which is too large for small images.
    """

    def __init__(self, width: int = 24, scale: int = 1) -> None:
        super().__init__()
        self.enter = _conv(4, width)
        self.below = nn.Sequential(
            _conv(width, 2 * width, 2), _conv(2 * width, width), nn.Upsample(scale_factor=2, mode="nearest")
        )
        self.leave = nn.Sequential(
            _conv(2 * width, width), nn.Conv2d(width, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale), nn.Sigmoid()
        )

    def forward(self, raw: Float[Tensor, "n 4 a b"]) -> Float[Tensor, "n 3 h w"]:
        seen = self.enter(raw)
        return self.leave(torch.cat((seen, self.below(seen)), 1))
