"""A normalised linear head."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable


@rebuildable
class CosineHead(nn.Linear):
    """``scale`` x the cosines of features (n, d) and rows of the weight (c, d), as in the code of Cao et al. (2019,
    arXiv:1906.07413); there is no bias."""

    def __init__(self, dim: int, classes: int, scale: float = 30.0) -> None:
        super().__init__(dim, classes, bias=False)
        self.scale = float(scale)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T


@rebuildable
class CosineNetwork(nn.Module):
    """A copy of ``model`` in which a CosineHead takes the place of the linear layer named ``layer`` ("": the model
    itself); it starts from that layer's weight, in its dtype, and is frozen where that is. InputError where
    the model has no linear layer of that name."""

    def __init__(self, model: nn.Module, layer: str = "head", scale: float = 30.0) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        linear = dict(model.named_modules()).get(layer)
        if not isinstance(linear, nn.Linear):
            raise InputError(f"CosineNetwork: layer {layer!r} is {type(linear).__name__}; expected an nn.Linear's name")
        with torch.random.fork_rng(devices=[]):
            head = CosineHead(linear.in_features, linear.out_features, scale).to(linear.weight)
        with torch.no_grad():
            head.weight.copy_(linear.weight)
        head.requires_grad_(linear.weight.requires_grad)
        parent, _, name = layer.rpartition(".")
        if name:
            setattr(self.model.get_submodule(parent), name, head)
        else:
            self.model = head
        self.train(model.training)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.model(x)
