"""Small feed-forward networks."""

from __future__ import annotations

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.spec import rebuildable


@rebuildable
class MLP(nn.Module):
    """Fully connected ReLU network on flattened inputs of ``shape``."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, hidden: tuple[int, ...] = (64,)) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden]
        body: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise(sizes):
            body += [nn.Linear(a, b), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.head(self.body(x))


@rebuildable
class SmallCNN(nn.Module):
    """Two or three 3x3 convolutions with ReLU, the later ones with stride 2, then a hidden and a linear layer."""

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 8, 8),
        classes: int = 10,
        widths: tuple[int, ...] = (16, 32),
        hidden: int = 64,
    ) -> None:
        super().__init__()
        body: list[nn.Module] = []
        channels, height, width = shape
        for k, w in enumerate(widths):
            stride = 1 if k == 0 and height <= 8 else 2
            body += [nn.Conv2d(channels, w, 3, stride, 1), nn.ReLU()]
            channels, height, width = w, -(-height // stride), -(-width // stride)
        body += [nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        return self.head(self.body(x))
