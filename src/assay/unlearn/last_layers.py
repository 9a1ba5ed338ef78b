"""Unlearning in the last layers alone: trained on, or trained anew."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject import Subject, fresh
from assay.training import State, Trainer
from assay.training.engine import Hook
from assay.unlearn.base import Unlearner, recipe_of, together
from assay.unlearn.finetune import FineTune
from assay.unlearn.l1_sparse import NORMS


def layer_blocks(model: nn.Module) -> list[list[nn.Module]]:
    """The leaf modules that hold parameters, in order, each with the normalisation layers that follow it."""
    blocks: list[list[nn.Module]] = []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            if isinstance(module, NORMS) and blocks:
                blocks[-1].append(module)
            else:
                blocks.append([module])
    return blocks


def _frozen(model: nn.Module, layers: int | None) -> nn.Module:
    """A copy of which only the last ``layers`` blocks can be trained."""
    other = copy.deepcopy(model)
    blocks = layer_blocks(other)
    if layers is not None and layers > len(blocks):
        raise InputError(f"the last {layers} layers: the model has {len(blocks)}; expected at most as many")
    for block in blocks[: len(blocks) - layers] if layers is not None else []:
        for module in block:
            for p in module.parameters(recurse=False):
                p.requires_grad_(False)
    return other


def _trained(trainer: Trainer, start: nn.Module, data: Data, seed: int, hooks: Sequence[Hook]) -> nn.Module:
    """``start`` after training; what is frozen keeps its buffers too, and can be trained again afterwards."""
    held = {
        f"{name}.{k}" if name else k: b.clone()
        for name, m in start.named_modules()
        if (own := list(m.parameters(recurse=False))) and not any(p.requires_grad for p in own)
        for k, b in m.named_buffers(recurse=False)
    }

    def restore(models: dict[str, nn.Module], state: State) -> None:
        with torch.no_grad():
            for name, b in models["model"].named_buffers():
                if name in held:
                    b.copy_(held[name])

    model = trainer.fit(start, data, seed=seed, hooks=[restore, *hooks] if held else hooks)
    return model.requires_grad_(True)


def _check(who: str, layers: int | None) -> None:
    if layers is not None and layers < 1:
        raise InputError(f"{who}: layers={layers}; expected at least 1, or none for all of them")


@dataclass(frozen=True, kw_only=True)
class CFk(FineTune):
    """Fine-tune the last ``layers`` layers on what is retained, the others frozen (Goel et al., 2022, arXiv:2201.06640,
    section 4, "CF-k": catastrophic forgetting of the last k).

    A layer is a module with parameters and the normalisation that follows it; None: all of them, which is FineTune.
    Frozen layers keep weights and running statistics. ``control`` and other options: see FineTune.
    """

    layers: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("CFk", self.layers)

    def _train(self, subject: Subject, data: Data, seed: int, hooks: Sequence[Hook] = ()) -> nn.Module:
        return _trained(self.trainer(subject), _frozen(subject.model, self.layers), data, seed, hooks)


@dataclass(frozen=True, kw_only=True)
class EUk(Unlearner):
    """Train the last ``layers`` layers anew on what is retained, the others frozen (Goel et al., 2022,
    arXiv:2201.06640, section 4, "EU-k": exact unlearning of the last k).

    By the subject's recipe, from new weights in those layers. None: all layers, which is Retrain. What the frozen
    layers learned of ``forget`` stays. Raises AccessError where the subject has no recipe. ``control`` trains them
    anew on all the data.
    """

    layers: int | None = 1

    def __post_init__(self) -> None:
        _check("EUk", self.layers)

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """A model whose last layers never saw ``forget``."""
        self.check(subject, forget, retain)
        return self._train(subject, retain, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The same with all the data."""
        train = self.check(subject, forget, retain)
        return self._train(subject, together(train, forget, retain), seed)

    def _train(self, subject: Subject, data: Data, seed: int) -> nn.Module:
        recipe = recipe_of(subject, "EUk")
        start = _frozen(fresh(subject.model, seed=seed), self.layers)
        if self.layers is not None:
            kept = [b for part in layer_blocks(subject.model)[: -self.layers] for b in part]
            new = [b for part in layer_blocks(start)[: -self.layers] for b in part]
            for old, other in zip(kept, new, strict=True):
                other.load_state_dict(old.state_dict())
        return _trained(recipe, start, data, seed, ())
