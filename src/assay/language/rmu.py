"""Unlearning replies by misdirecting what one layer says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.language.grad_diff import GradDiff
from assay.language.replies import Replies, context_of, widened
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng


def activations(model: nn.Module, layer: str, batch: Replies) -> Float[Tensor, "n t d"]:
    """What the module named ``layer`` gives for each token (the first of its outputs); InputError where it is none
    or gives no such thing."""
    modules = dict(model.named_modules())
    if layer not in modules:
        raise unknown("layer of RMU", layer, modules)
    caught: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        caught.append(output if isinstance(output, Tensor) else output[0])

    handle = modules[layer].register_forward_hook(keep)
    try:
        model(input_ids=batch.ids, **context_of(model, batch))
    finally:
        handle.remove()
    if not caught or not isinstance(caught[0], Tensor) or caught[0].dim() != 3:
        raise InputError(f"layer of RMU {layer!r}: gives no hidden states (n, t, d); expected a layer that runs")
    return caught[0]


def control_vector(width: int, *, seed: int) -> Float[Tensor, " d"]:
    """A unit vector in the direction of ``width`` uniform draws from [0, 1)."""
    draws = torch.rand(width, generator=torch_rng(seed, "rmu control"))
    return draws / draws.norm()


def mean_square(gap: Float[Tensor, "n t d"], real: Bool[Tensor, "n t"]) -> Float[Tensor, ""]:
    """The mean over the width, over each row's tokens in ``real``, and over rows, of the square."""
    each = (widened(gap).square().mean(2) * real).sum(1) / real.sum(1)
    return each.mean()


@dataclass(frozen=True, kw_only=True)
class RMU(GradDiff):
    """Representation misdirection for unlearning (Li et al., 2024, arXiv:2403.03218).

    ``gamma`` |h - c u|^2 on tokens to forget + ``alpha`` |h - h_before|^2 on tokens to retain, where h is the hidden
    state that the module ``layer`` gives, u a random unit vector (``control_vector``), and c = ``coefficient``. Squares
    are means over the width, as in the official code; the paper writes norms. They count at the tokens of the replies.
    Only the parameters in ``params`` move (names, or names of modules whose parameters all do). The defaults are the
    paper's for Zephyr-7B, and names in its kind of model; InputError where a model has no such module or parameter.
    ``per`` and ``retain_loss`` have no meaning here. Options: see GradDiff.
    """

    lr: float = 5e-5
    alpha: float = 1200.0
    coefficient: float = 6.5
    layer: str = "model.layers.7"
    params: tuple[str, ...] = tuple(f"model.layers.{k}.mlp.down_proj.weight" for k in (5, 6, 7))

    @property
    def compares(self) -> bool:
        return self.retains

    def trained(self, model: nn.Module) -> list[Tensor]:
        """The parameters that ``params`` names."""
        named = dict(model.named_parameters(remove_duplicate=False))
        found = {name: [k for k in named if k == name or k.startswith(f"{name}.")] for name in self.params}
        for name, keys in found.items():
            if not keys:
                raise unknown("parameter of RMU", name, named)
        if not found:
            raise InputError("RMU: params is empty; expected the name of a parameter or module at least")
        chosen = {k for keys in found.values() for k in keys}
        return list(dict.fromkeys(p for k, p in named.items() if k in chosen))

    def forget_loss(
        self, model: nn.Module, reference: nn.Module | None, batch: Replies, *, seed: int
    ) -> Float[Tensor, ""]:
        h = activations(model, self.layer, batch)
        aim = self.coefficient * control_vector(h.shape[2], seed=seed).to(h)
        return mean_square(h - aim, batch.targets)

    def retain_loss_of(self, model: nn.Module, reference: nn.Module | None, batch: Replies) -> Float[Tensor, ""]:
        assert reference is not None
        with torch.no_grad():
            before = activations(reference, self.layer, batch)
        return mean_square(activations(model, self.layer, batch) - before, batch.targets)
