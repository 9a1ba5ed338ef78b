"""Norms of per-sample gradients without the gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from assay.runtime.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Call:
    """One call of a layer: what went in, what came out, and which of its own parameters count."""

    layer: nn.Module
    inputs: Tensor
    output: Tensor
    names: frozenset[str]


def ghost_squares(
    model: nn.Module, loss: Loss, x: Float[Tensor, "b ..."], y: Tensor, names: Collection[str]
) -> Float[Tensor, " b"]:
    """Squared norms of the per-sample gradients of ``loss`` in the named parameters (Goodfellow, 2015,
    arXiv:1510.01799; for convolutions Rochette et al., 2019, arXiv:1912.06015).

    ``loss(logits, y)`` is a sum over samples; the model treats each sample by itself (evaluation mode). For a linear
    or 2-d convolutional layer with inputs A (L, i) (patches for a convolution) and output gradients G (L, o) the
    weight's gradient is A^T G, and its squared norm <A A^T, G G^T>; other layers get their own parameters' gradients by
    vmap. Raises InputError where a layer or parameter is used more than once, whose gradients would add up, and for
    attention and other layers that do not give one tensor.
    """
    with torch.enable_grad(), _recorded(model, frozenset(names)) as calls:
        total = loss(model(x.detach().requires_grad_()), y)
        gradients = torch.autograd.grad(total, [c.output for c in calls], allow_unused=True)
    squares = x.new_zeros(len(x))
    for call, g in zip(calls, gradients, strict=True):
        if g is not None:
            squares = squares + _squares(call, g)
    return squares


@contextmanager
def _recorded(model: nn.Module, names: frozenset[str]) -> Iterator[list[_Call]]:
    """Every call of a layer that owns some of the parameters, as the block makes it."""
    calls: list[_Call] = []
    owned = {
        module: frozenset(n for n, _ in module.named_parameters(recurse=False) if f"{path}.{n}".lstrip(".") in names)
        for path, module in model.named_modules()
    }
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and any(owned[part] for part in module.modules()):
            raise InputError(f"ghost: {path or 'the model'} is attention; expected layers of one tensor (use 'vmap')")
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    if any(count > 1 for count in uses.values()):
        raise InputError("ghost: layers share a parameter; expected each in one layer (use method='vmap')")

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            given = f"{type(layer).__name__} gives a {type(output).__name__}"
            raise InputError(f"ghost: {given}; expected a tensor (use method='vmap')")
        if any(c.layer is layer for c in calls):
            raise InputError(f"ghost: {type(layer).__name__} is called twice; expected once (use method='vmap')")
        calls.append(_Call(layer, inputs[0].detach(), output, owned[layer]))
        return output.clone()  # what follows may work in place

    handles = [module.register_forward_hook(keep) for module, own in owned.items() if own]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _squares(call: _Call, g: Tensor) -> Float[Tensor, " b"]:
    layer, a = call.layer, call.inputs
    if type(layer) is nn.Linear:
        a, g = a.reshape(len(a), -1, layer.in_features), g.reshape(len(g), -1, layer.out_features)
        groups = 1
    elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
        g = g.flatten(2).mT
        groups = layer.groups
    else:
        return _by_vmap(call, g)
    total = g.new_zeros(len(g))
    if "weight" in call.names:
        for part_a, part_g in zip(a.chunk(groups, 2), g.chunk(groups, 2), strict=True):
            total = total + _product(part_a, part_g)
    return total + g.sum(1).square().sum(1) if "bias" in call.names else total


def _product(a: Float[Tensor, "b l i"], g: Float[Tensor, "b l o"]) -> Float[Tensor, " b"]:
    """The squared norm of A^T G, formed or not: whichever is smaller."""
    if a.shape[1] ** 2 < a.shape[2] * g.shape[2]:
        return ((a @ a.mT) * (g @ g.mT)).flatten(1).sum(1)
    return (a.mT @ g).square().flatten(1).sum(1)


def _by_vmap(call: _Call, g: Tensor) -> Float[Tensor, " b"]:
    own = {n: p.detach() for n, p in call.layer.named_parameters(recurse=False) if n in call.names}

    def inner(weights: dict[str, Tensor], a: Tensor, g: Tensor) -> Tensor:
        return (functional_call(call.layer, weights, (a[None],)) * g[None]).sum()

    gradients = vmap(grad(inner), in_dims=(None, 0, 0))(own, call.inputs, g)
    return torch.stack([p.square().flatten(1).sum(1) for p in gradients.values()]).sum(0)
