"""Maps of where a classifier looks that can be differentiated once more: what attacks and explanations share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError

Saliency = Callable[[nn.Module, Tensor, Tensor], Tensor]


def min_max(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Each map stretched to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    width = high - low
    rounding = 4 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (maps - low) * (width > rounding) / torch.where(width > rounding, width, 1)


def gradient_saliency(
    model: nn.Module, x: Float[Tensor, "n ch h w"], y: Int[Tensor, " n"], *, pool: int = 4
) -> Float[Tensor, "n h' w'"]:
    """|gradient of log p_y|, the largest over channels, averaged over ``pool`` x ``pool`` pixels, in [0, 1].

    The saliency of Simonyan et al. (2014, arXiv:1312.6034) as Abdukhamidov et al. (2023, arXiv:2307.06496) use it.
    Where ``x`` requires a gradient, so does the map (through second derivatives); elsewhere it is detached. The model
    is used in the mode that it is in. Raises InputError for x that is no images, or smaller than ``pool``.
    """
    if x.dim() != 4 or pool < 1 or min(x.shape[2:]) < pool:
        raise InputError(f"gradient_saliency: x has shape {tuple(x.shape)}, pool={pool}; expected images of that size")
    check_labels("gradient_saliency: y", y, len(x))
    again = x.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        z = x if again else x.detach().requires_grad_()
        logits = model(z)
        # A positive multiple of the gradient of log p_y, which is still there where p_y rounds to 1.
        odds = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        (slope,) = torch.autograd.grad(odds.sum(), z, create_graph=again)
    return min_max(F.avg_pool2d(slope.abs().amax(1, keepdim=True), pool)[:, 0])


def cam(model: nn.Module, x: Float[Tensor, "n ch h w"], y: Int[Tensor, " n"]) -> Float[Tensor, "n h' w'"]:
    """Class activation map (Zhou et al., 2016, arXiv:1512.04150, eq. 2): the last maps weighted by their part in the
    logit of y, in [0, 1].

    For networks that end in ``nn.AdaptiveAvgPool2d(1)`` and one linear layer; InputError for others. Where ``x``
    requires a gradient, so does the map. The model is used in the mode that it is in.
    """
    pools = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1))]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not pools or not linear:
        raise InputError("cam: the model has no global average pool before a linear layer; expected both")
    caught: list[Tensor] = []
    with ExitStack() as stack:
        handle = pools[-1].register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
        stack.callback(handle.remove)
        model(x)
    head, maps = linear[-1], caught[-1] if caught else x
    if not caught or maps.dim() != 4 or maps.shape[1] != head.in_features:
        raise InputError(f"cam: the pooled maps do not feed a linear layer of {head.in_features} inputs; expected that")
    check_labels("cam: y", y, len(x), head.out_features)
    return min_max(torch.einsum("nkhw,nk->nhw", maps, head.weight[y]))


SALIENCY: dict[str, Saliency] = {"grad": gradient_saliency, "cam": cam}
