"""Structured pruning by the first-order change of the loss."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.compress.channel_graph import Space
from assay.compress.channel_pruning import Calibration, ChannelPruning
from assay.runtime.inference import device_of


@dataclass(frozen=True, kw_only=True)
class TaylorChannels(ChannelPruning):
    """Keep the channels whose removal would change the loss most, to first order (Molchanov et al., 2017,
    arXiv:1611.06440, equation 8).

    A channel's score is the mean over samples of |mean over positions of a dL/da|, a what a layer reads of it and L the
    cross-entropy, added over the layers that read it. It needs gradients and labels, the model's own where there are
    none. Fields, ranges and errors: see ChannelPruning.
    """

    def scores(self, model: nn.Module, space: Space, given: Calibration) -> Float[Tensor, " c"]:
        """|activation x gradient| of the channels."""
        net = copy.deepcopy(model).requires_grad_(True).eval()
        caught: dict[str, Tensor] = {}
        modules: dict[str, Any] = dict(net.named_modules())

        def hook(name: str) -> Any:
            def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                caught[name] = inputs[0]

            return keep

        for name in space.consumers:
            modules[name].register_forward_pre_hook(hook(name))
        with torch.enable_grad():
            logits = net(given.x.to(device_of(net)))
            y = logits.argmax(1) if given.y is None else given.y.to(logits.device)
            gradients = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), list(caught.values()))
        found = torch.zeros(space.channels, dtype=torch.float64)
        for a, g, per in zip(caught.values(), gradients, space.consumers.values(), strict=True):
            product = (a * g).detach().cpu().double()
            if space.last:
                product = product.flatten(1, -2).mT
            wide = product.flatten(2) if product.dim() > 2 else product.reshape(len(product), -1, per)
            found += wide.mean(2).abs().mean(0)
        return found
