"""Unlearning in the last layers alone: trained on, or trained anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
    """The leaf modules that hold parameters, in order, each with the normalisation layers that follow it; one that
    comes before all others stands alone.
    """
    blocks: list[list[nn.Module]] = []
    for module in model.modules():
        if isinstance(module, NORMS) and blocks:
            blocks[-1].append(module)
        elif isinstance(module, NORMS) or any(True for _ in module.parameters(recurse=False)):
            blocks.append([module])
    return blocks


def _held(model: nn.Module, layers: int | None) -> list[int]:
    """Which of the model's blocks stay: all but the last ``layers`` of those with a trainable parameter."""
    blocks = layer_blocks(model)
    free = [k for k, b in enumerate(blocks) if any(p.requires_grad for m in b for p in m.parameters(recurse=False))]
    if layers is None:
        return []
    if layers > len(free):
        raise InputError(f"the last {layers} layers: the model has {len(free)} to train; expected at most as many")
    return sorted(set(range(len(blocks))) - set(free[-layers:]))


def _flags(model: nn.Module, like: nn.Module) -> nn.Module:
    """``model`` with the parameters trainable that are so in ``like``."""
    for p, q in zip(model.parameters(), like.parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    return model


def _trained(
    trainer: Trainer, start: nn.Module, blocks: list[int], data: Data, seed: int, hooks: Sequence[Hook]
) -> nn.Module:
    """``start`` after training in which ``blocks`` keep parameters and buffers; flags as they were."""
    frozen, every = copy.deepcopy(start), {}
    for module in [m for k in blocks for m in layer_blocks(frozen)[k]]:
        every[id(module)] = module
        for p in module.parameters(recurse=False):
            p.requires_grad_(False)
    held = {
        f"{name}.{k}" if name else k: b.clone()
        for name, m in frozen.named_modules()
        if id(m) in every
        for k, b in m.named_buffers(recurse=False)
    }

    def restored(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, b in model.named_buffers():
                if name in held:
                    b.copy_(held[name])
        return model

    def restore(models: Mapping[str, nn.Module], state: State) -> None:
        restored(models["model"])

    trained = trainer.fit(frozen, data, seed=seed, hooks=[restore, *hooks] if held else hooks)
    return _flags(restored(trained), start)  # a weight average took the buffers in before the hook


def _check(who: str, layers: int | None) -> None:
    if layers is not None and layers < 1:
        raise InputError(f"{who}: layers={layers}; expected at least 1, or none for all of them")


@dataclass(frozen=True, kw_only=True)
class CFk(FineTune):
    """Fine-tune the last ``layers`` layers on what is retained, the others frozen (Goel et al., 2022, arXiv:2201.06640,
    section 4, "CF-k": catastrophic forgetting of the last k).

    A layer is a module and the normalisation that follows it, with a parameter that can be trained; None: all of them,
    which is FineTune. Frozen layers keep weights and running statistics. Raises InputError for fewer layers.
    ``control`` and other options: see FineTune.
    """

    layers: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("CFk", self.layers)

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See FineTune."""
        return [_flags(m, subject.model) for m in super().stages(subject, forget, retain, seed=seed)]

    def _train(self, subject: Subject, data: Data, seed: int, hooks: Sequence[Hook] = ()) -> nn.Module:
        blocks = _held(subject.model, self.layers)
        return _trained(self.trainer(subject), subject.model, blocks, data, seed, hooks)


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
        blocks, start = _held(subject.model, self.layers), _flags(fresh(subject.model, seed=seed), subject.model)
        old, new = layer_blocks(subject.model), layer_blocks(start)
        for k in blocks:
            for kept, other in zip(old[k], new[k], strict=True):
                other.load_state_dict(kept.state_dict())
        return _trained(recipe, start, blocks, data, seed, ())
