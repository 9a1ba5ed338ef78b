"""The outputs of a network's convolutional stages, whatever the network's task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import named_layers

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


class _Reached(Exception):
    """The last stage has been seen: the rest of the network need not run."""


class ConvStages:
    """``stages(z)`` gives the stages' outputs for inputs z (n, ...), a list in the order of the forward pass.

    A stage is a convolution's activation: the output of the activation module called next, past normalisation; of the
    convolution itself where none follows (functional activations). Pooling, normalisation and linear layers are no
    stages. ``layers`` names modules to take instead. The forward pass ends at the last stage; hooks live only within a
    call. Raises InputError where there is no convolution, or no module of that name.
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "n ..."], layers: tuple[str, ...] | None = None) -> None:
        self.model = model
        modules = dict(model.named_modules())
        for name in layers or ():
            if name not in modules:
                raise unknown("layer", name, modules)
        watched = list(named_layers(model).values()) if layers is None else [modules[n] for n in layers]
        calls: list[nn.Module] = []
        with torch.no_grad(), ExitStack() as stack:
            for module in dict.fromkeys(watched):
                handle = module.register_forward_hook(lambda m, _args, _out: calls.append(m))
                stack.callback(handle.remove)
            model(x)
        taken = range(len(calls)) if layers is not None else _activations(calls)
        seen: Counter[nn.Module] = Counter()
        numbered = []
        for module in calls:
            seen[module] += 1
            numbered.append((module, seen[module]))
        self.order = [numbered[k] for k in taken]
        if not self.order:
            raise InputError("convolutional stages: the model calls none; expected a convolution, or names in layers")

    def __call__(self, z: Float[Tensor, "n ..."]) -> list[Tensor]:
        found: dict[tuple[nn.Module, int], Tensor] = {}
        seen: Counter[nn.Module] = Counter()
        wanted = set(self.order)

        def keep(module: nn.Module, _args: object, out: Tensor) -> None:
            seen[module] += 1
            if (module, seen[module]) in wanted:
                found[module, seen[module]] = out.clone()  # later modules may work in place
            if len(found) == len(wanted):
                raise _Reached

        with ExitStack() as stack, suppress(_Reached):
            for module in {m for m, _ in self.order}:
                stack.callback(module.register_forward_hook(keep).remove)
            self.model(z)
        return [found[key] for key in self.order]


def _activations(calls: list[nn.Module]) -> list[int]:
    """The positions among the called leaf modules of each convolution's activation."""
    taken = []
    for i, module in enumerate(calls):
        if isinstance(module, _ConvNd):
            j = next((j for j in range(i + 1, len(calls)) if not isinstance(calls[j], NORMS)), i)
            taken.append(j if type(calls[j]).__module__ == "torch.nn.modules.activation" else i)
    return taken


Stages = Callable[[Tensor], list[Tensor]]
