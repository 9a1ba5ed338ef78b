"""Watching what a model's linear head is fed, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError, unknown

Watched = Callable[[Tensor], tuple[Float[Tensor, "n d"], Float[Tensor, "n c"]]]


def linear_head(model: nn.Module, x: Float[Tensor, "n ..."], name: str | None = None) -> nn.Linear:
    """The nn.Linear whose output is the model's output on ``x``: the one called last, or the one of that name.

    Raises InputError where there is none, or where the model changes its output afterwards.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if name is not None and name not in layers:
        raise unknown("linear layer", name, layers)
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, args[0], out))

    handles = [m.register_forward_hook(keep) for n, m in layers.items() if name in (None, n)]
    try:
        with torch.no_grad():
            out = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise InputError("linear head: the model calls no nn.Linear; expected one that gives its logits")
    layer, fed, given = calls[-1]
    if fed.dim() != 2 or given.shape != out.shape or not torch.equal(given, out):
        raise InputError("linear head: the model's output is not that of its last nn.Linear; expected z -> A z + b")
    return layer


@contextmanager
def watching(model: nn.Module, head: nn.Linear) -> Iterator[Watched]:
    """A function of inputs that gives the features fed to ``head`` and the model's logits; the hook goes at the end."""
    fed: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, args: fed.append(args[0]))

    def look(z: Tensor) -> tuple[Tensor, Tensor]:
        fed.clear()
        logits = model(z)
        return fed[-1], logits

    try:
        yield look
    finally:
        handle.remove()
