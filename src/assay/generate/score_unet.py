"""A small U-Net for scores of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.spec import rebuildable


class _Block(nn.Module):
    """Two 3x3 convolutions, shifted between them by the embedded time, around a shortcut."""

    def __init__(self, channels: int, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(min(4, channels), channels), nn.SiLU(), nn.Conv2d(channels, width, 3, 1, 1)
        )
        self.shift = nn.Linear(embedding, width)
        self.second = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1))
        self.short = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.short(x) + self.second(self.first(x) + self.shift(time)[:, :, None, None])


@rebuildable
class TinyScoreUNet(nn.Module):
    """``net(x (n, c, h, w), t (n,)) -> (n, c, h, w)``, t in (0, 1]: three levels of ``width``, 2 and 4 times it.

    ``width`` is a multiple of 4, h and w at least 4. The last layer starts at zero.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), width: int = 16) -> None:
        super().__init__()
        channels, self.frequencies = shape[0], 2 * width
        size = 4 * width
        self.time = nn.Sequential(nn.Linear(2 * self.frequencies, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())
        self.enter = nn.Conv2d(channels, width, 3, 1, 1)
        self.down = nn.ModuleList(
            [_Block(width, width, size), _Block(width, 2 * width, size), _Block(2 * width, 4 * width, size)]
        )
        self.up = nn.ModuleList([_Block(6 * width, 2 * width, size), _Block(3 * width, width, size)])
        last = nn.Conv2d(width, channels, 3, 1, 1)
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def embedded(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Sines and cosines of 1000 t at geometric frequencies from 1 to 1/10000 (Vaswani et al., 2017)."""
        ramp = torch.arange(self.frequencies, device=t.device) / (self.frequencies - 1)
        angles = 1000 * t[:, None] * torch.exp(-math.log(1e4) * ramp)
        return self.time(torch.cat((angles.sin(), angles.cos()), 1).to(next(self.parameters()).dtype))

    def forward(self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        time = self.embedded(t)
        hidden, kept = self.enter(x), []
        for k, block in enumerate(self.down):
            hidden = block(F.avg_pool2d(hidden, 2, ceil_mode=True) if k else hidden, time)
            kept.append(hidden)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            wide = F.interpolate(hidden, size=skip.shape[2:], mode="nearest")
            hidden = block(torch.cat((wide, skip), 1), time)
        return self.leave(hidden)
