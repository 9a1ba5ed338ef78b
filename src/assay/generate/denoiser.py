"""A small network for denoisers: it sees the noisy input, the noise level and, where there are classes, the label."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.spec import rebuildable

FREQUENCIES = 16


@rebuildable
class DenoiserMLP(nn.Module):
    """``net(x (n, *shape), c_noise (n,), labels) -> (n, *shape)``: residual blocks, each shifted by the noise level.

    ``classes`` 0 is unconditional: labels are ignored. The last layer starts at zero, as in diffusion networks.
    """

    frequencies: Tensor

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), classes: int = 0, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        size = math.prod(shape)
        self.enter = nn.Linear(size, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU())
        self.label = nn.Embedding(classes, width) if classes else None
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        last = nn.Linear(width, size)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last)
        self.register_buffer("frequencies", torch.logspace(-1, 1, FREQUENCIES), persistent=False)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, x: Float[Tensor, "n ..."], c_noise: Float[Tensor, " n"], labels: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n ..."]:
        angles = c_noise[:, None] * self.frequencies
        embedding = self.level(torch.cat((angles.cos(), angles.sin()), 1))
        if self.label is not None and labels is not None:
            embedding = embedding + self.label(labels)
        hidden = self.enter(x.flatten(1))
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            hidden = hidden + block(hidden + shift(embedding))
        return self.leave(hidden).reshape(x.shape)
