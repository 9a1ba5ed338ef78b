"""Mixup of hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.labels.mixup import Mixup
from assay.runtime.errors import InputError
from assay.runtime.inference import named_layers
from assay.runtime.random import numpy_rng
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class ManifoldMixup(Mixup):
    """Mixup of what enters a layer drawn anew for each batch (Verma et al., 2018, arXiv:1806.05236, section 2).

    ``layers`` are names of modules of the model; absent, all those with a weight matrix or kernel but the last of them.
    The first such layer stands for the input itself. A layer inside a residual block mixes its own branch alone: name
    whole blocks there. A layer that is called several times mixes at its first call. InputError for names that the
    model does not have, for a layer that it does not call, and as Mixup.
    """

    stream: ClassVar[str] = "ManifoldMixup"

    layers: tuple[str, ...] | None = None

    def eligible(self, model: nn.Module) -> list[nn.Module]:
        """The layers to draw from."""
        if self.layers is None:
            # Attention reads the weights of the layer inside it without a call.
            inside = {m for a in model.modules() if isinstance(a, nn.MultiheadAttention) for m in a.modules()}
            leaves = [m for m in named_layers(model).values() if m not in inside]
            weighted = [m for m in leaves if any(p.dim() > 1 for p in m.parameters())]
            return weighted[:-1] or [model]
        modules = dict(model.named_modules())
        missing = [name for name in self.layers if name not in modules]
        if missing or not self.layers:
            raise InputError(
                f"ManifoldMixup: layers {self.layers}; expected names among {', '.join(filter(None, modules))}"
            )
        return [modules[name] for name in self.layers]

    def mixed_logits(
        self, model: nn.Module, batch: Batch, state: State
    ) -> tuple[Float[Tensor, "k c"], Int[Tensor, " k"], Int[Tensor, " k"], float]:
        first, second = self.partners(batch, state)
        share, found = self.share(state), self.eligible(model)
        layer = found[int(numpy_rng(state.seed, "ManifoldMixup/layer", state.step).integers(len(found)))]

        calls: list[nn.Module] = []

        def mix(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            calls.append(module)
            if len(calls) > 1:
                return given
            return (self.mixed(given[0][first], given[0][second], share, state)[0], *given[1:])

        handle = layer.register_forward_pre_hook(mix)
        try:
            logits = model(batch.x)
        finally:
            handle.remove()
        if not calls:
            name = next(name for name, module in model.named_modules() if module is layer)
            raise InputError(
                f"ManifoldMixup: the model does not call its layer {name!r}; expected layers that it calls"
            )
        return logits, batch.y[first], batch.y[second], self.label_share(share, state)
