"""Prune first, then unlearn."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils import parametrize

from assay.compress import MagnitudePruning
from assay.compress.pruning import Masks, Pruning, apply
from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject import Subject, fresh
from assay.unlearn.base import Unlearner, recipe_of, together
from assay.unlearn.finetune import FineTune
from assay.unlearn.retrain import Retrain


class _Masked(nn.Module):
    """A weight whose masked entries are zero and get no gradient."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


@dataclass(frozen=True)
class SparseForgotten:
    """The unlearned sparse model, its ``mask_`` by parameter name (True stays), and the sparse model it came from."""

    model: nn.Module
    mask_: Masks
    sparse_: nn.Module


@dataclass(frozen=True, kw_only=True)
class PruneFirstThenUnlearn(Unlearner):
    """Prune the model, train what is left, then unlearn with the mask fixed (Jia et al., 2023, arXiv:2304.04934,
    section 4).

    ``pruner`` gives the mask (the paper's default: the globally smallest 95%, one-shot); frozen weights are none of its
    and stay. With ``retrain`` the surviving weights are trained by the subject's recipe on all the data, from where
    they are or from ``rewind``, a state dict of an early epoch (the paper rewinds to epoch 8). ``unlearner`` is any
    other; Retrain trains new weights under the mask. Masked entries are exactly 0 throughout. Raises AccessError where
    ``retrain`` or Retrain lacks a recipe.
    """

    pruner: Pruning = field(default_factory=lambda: MagnitudePruning(sparsity=0.95))
    unlearner: Unlearner = field(default_factory=FineTune)
    retrain: bool = True
    rewind: Mapping[str, Tensor] | None = None

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The sparse model without ``forget``."""
        return self.fit(subject, forget, retain, seed=seed).model

    def fit(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> SparseForgotten:
        """The sparse model without ``forget``, with its mask."""
        masks, sparse = self._sparse(subject, forget, retain, seed)
        if isinstance(self.unlearner, Retrain):
            start = _masked(fresh(subject.model, seed=seed), masks)
            model = recipe_of(subject, "Retrain").fit(start, retain, seed=seed)
        else:
            model = self.unlearner.forget(subject.with_model(_masked(sparse, masks)), forget, retain, seed=seed)
        return SparseForgotten(_plain(model, subject.model), masks, sparse)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The sparse model after the unlearner's control."""
        masks, sparse = self._sparse(subject, forget, retain, seed)
        return _plain(
            self.unlearner.control(subject.with_model(_masked(sparse, masks)), forget, retain, seed=seed), subject.model
        )

    def _sparse(self, subject: Subject, forget: Data, retain: Data, seed: int) -> tuple[Masks, nn.Module]:
        train = self.check(subject, forget, retain)
        masks = self.pruner.masks(_prunable(subject.model), seed=seed)
        if empty := [name for name, mask in masks.items() if not mask.any()]:
            raise InputError(f"PruneFirstThenUnlearn: the mask empties {empty[0]!r}; expected a lower sparsity")
        start = copy.deepcopy(subject.model)
        if self.rewind is not None:
            start.load_state_dict(dict(self.rewind))
        if not self.retrain:
            return masks, apply(masks, start)
        recipe = recipe_of(subject, "PruneFirstThenUnlearn(retrain=True)")
        trained = recipe.fit(_masked(start, masks), together(train, forget, retain), seed=seed)
        return masks, _plain(trained, subject.model)


def _prunable(model: nn.Module) -> nn.Module:
    """A copy whose frozen parameters are buffers, which pruning leaves alone; the model itself where it has none."""
    if all(p.requires_grad for p in model.parameters()):
        return model
    other = copy.deepcopy(model)
    for module in other.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if not p.requires_grad:
                delattr(module, name)
                module.register_buffer(name, p.detach())
    return other


def _masked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy whose masked weights are zero and stay so under any training."""
    held = apply(masks, copy.deepcopy(model))
    masked = {id(p): masks[name] for name, p in held.named_parameters() if name in masks}
    for module in list(held.modules()):
        for leaf, p in list(module.named_parameters(recurse=False)):
            if id(p) in masked:  # in every layer that shares it
                parametrize.register_parametrization(module, leaf, _Masked(masked[id(p)]))
    return held


def _plain(model: nn.Module, like: nn.Module) -> nn.Module:
    """The masked model's weights in a copy of ``like``: no parametrisation, clean names."""
    held = copy.deepcopy(model)
    for module in list(held.modules()):
        for leaf, steps in dict(getattr(module, "parametrizations", {})).items():
            if isinstance(steps[0], _Masked):
                parametrize.remove_parametrizations(module, leaf)
    out = copy.deepcopy(like).eval()
    out.load_state_dict(held.state_dict())
    return out
