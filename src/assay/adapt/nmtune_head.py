"""A residual network on features, and a linear classifier on what it gives."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable


@rebuildable
class NMTuneHead(nn.Module):
    """Z = scale * MLP(F) + F and logits W Z + b (Chen et al., 2024, arXiv:2309.17002; the official code).

    The MLP has ``layers`` hidden layers of width ``ratio`` x dim, each with batch norm and ReLU, and a linear one back
    to dim; ``scale`` (dim,) is learned and starts at 1. Without ``residual`` Z = MLP(F); with ``layers=0`` Z = F, and
    the head is a linear probe. W starts Kaiming-uniform, b at 0. InputError unless dim, ratio >= 1, classes >= 2.
    """

    def __init__(self, dim: int, n_classes: int, ratio: int = 4, layers: int = 1, residual: bool = True) -> None:
        super().__init__()
        if min(dim, ratio) < 1 or n_classes < 2 or layers < 0:
            given = f"dim={dim}, n_classes={n_classes}, ratio={ratio}, layers={layers}"
            raise InputError(f"NMTuneHead: {given}; expected dim, ratio >= 1, n_classes >= 2, layers >= 0")
        widths = [dim, *[ratio * dim] * layers]
        body: list[nn.Module] = []
        for a, b in pairwise(widths):
            body += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
        self.body = nn.Sequential(*body, nn.Linear(widths[-1], dim)) if layers else nn.Identity()
        self.residual = residual and layers > 0
        if self.residual:
            self.scale = nn.Parameter(torch.ones(dim))
        self.classifier = nn.Linear(dim, n_classes)
        nn.init.kaiming_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def transform(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The reshaped features Z."""
        z: Tensor = self.body(features)
        return self.scale * z + features if self.residual else z

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.classifier(self.transform(features))
