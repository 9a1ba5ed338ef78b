"""Pruning by a score of each weight: the masks, the fine-tuning that keeps them, the control."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.compress.base import Compressor, weights_of
from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.subject import Access, Subject
from assay.training import State, Supervised

Masks = dict[str, Bool[Tensor, "..."]]
PROBE = 64


@dataclass(frozen=True, kw_only=True)
class Pruning(Compressor):
    """Set the lowest-scored weights of convolutional and linear layers to zero; biases and norms stay as they are.

    ``sparsity`` in [0, 1): the fraction of those weights that is zero afterwards, exact to half a weight; ties are
    broken by position. ``scope`` "global" ranks all layers together, "layer" each alone. ``finetune_epochs`` of
    cross-entropy training on the data follow, with the zeros kept. Raises InputError where a layer loses every weight
    and, on the data where there are some, the output no longer depends on the input.
    """

    sparsity: float = 0.9
    scope: Literal["global", "layer"] = "global"
    finetune_epochs: int = 0
    lr: float = 2e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not (math.isfinite(self.sparsity) and 0 <= self.sparsity < 1):
            raise InputError(f"{who}: sparsity={self.sparsity}; expected a fraction in [0, 1)")
        if self.scope not in ("global", "layer"):
            raise unknown(f"scope of {who}", str(self.scope), ("global", "layer"))
        if self.finetune_epochs < 0 or self.lr <= 0 or self.batch_size < 1:
            raise InputError(
                f"{who}: finetune_epochs={self.finetune_epochs}, lr={self.lr}, batch_size={self.batch_size}; "
                "expected finetune_epochs >= 0, lr > 0, batch_size >= 1"
            )

    def scores(self, weights: Mapping[str, nn.Parameter], *, seed: int) -> dict[str, Float[Tensor, ...]]:
        """How much each weight matters, in the weight's shape; the lowest go first."""
        raise TypeError(f"{type(self).__name__} states no scores")

    def masks(self, model: nn.Module, *, seed: int) -> Masks:
        """For each weight by name: which of its entries stay."""
        weights = weights_of(model)
        if not weights:
            raise InputError(f"{type(self).__name__}: the model has no convolutional or linear layer to prune")
        return select(self.scores(weights, seed=seed), self.sparsity, self.scope)

    def compress(self, model: nn.Module, data: Data | None, *, seed: int) -> nn.Module:
        """A pruned copy of ``model``, fine-tuned on ``data`` where asked."""
        masks = self.masks(model, seed=seed)
        pruned = apply(masks, copy.deepcopy(model))
        empty = [name for name, mask in masks.items() if not mask.any()]
        if empty and data is not None and len(data) > 1:
            logits = predict(pruned, data.x[:PROBE])
            if bool((logits == logits[:1]).all()):
                raise InputError(
                    f"{type(self).__name__}: sparsity {self.sparsity} ({self.scope}) empties {empty[0]!r} and the "
                    "model's output no longer depends on its input; expected a lower sparsity or scope='layer'"
                )
        return (self._finetune(pruned, data, masks, seed=seed) if self.finetune_epochs else pruned).eval()

    def _finetune(self, model: nn.Module, data: Data | None, masks: Masks, *, seed: int) -> nn.Module:
        if data is None:
            raise InputError(f"{type(self).__name__}: finetune_epochs={self.finetune_epochs}; expected training data")

        def keep_zeros(models: Mapping[str, nn.Module], state: State) -> None:
            apply(masks, models["model"])

        trainer = Supervised(epochs=self.finetune_epochs, lr=self.lr, batch_size=self.batch_size)
        return trainer.fit(model, data, seed=seed, hooks=(keep_zeros,))

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's model, pruned. AccessError without its weights, or without training data to fine-tune on."""
        subject.grants(Access.WEIGHTS, type(self).__name__)
        if self.finetune_epochs:
            subject.training(f"{type(self).__name__} with fine-tuning")
        return self.compress(subject.model, subject.train or subject.holdout, seed=seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """The same fine-tuning without pruning; None where there is none."""
        if not self.finetune_epochs:
            return None
        data = subject.training(f"{type(self).__name__} with fine-tuning")
        return self._finetune(subject.model, data, {}, seed=seed)


@torch.no_grad()
def apply(masks: Masks, model: nn.Module) -> nn.Module:
    """Set to zero, in place, what the masks take out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask, 0.0)
    return model


def lowest(scores: Float[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """Exactly ``k`` entries with the lowest scores; among equals those that come first."""
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(k).values
    chosen = scores < threshold
    ties = (scores == threshold).nonzero()[:, 0]
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen


def select(scores: Mapping[str, Tensor], sparsity: float, scope: str) -> Masks:
    """Masks that drop the lowest-scored fraction over all tensors ("global") or in each ("layer")."""
    if scope == "layer":
        return {n: ~lowest(s.flatten(), round(sparsity * s.numel())).view_as(s) for n, s in scores.items()}
    flat = torch.cat([s.flatten() for s in scores.values()])
    parts = (~lowest(flat, round(sparsity * len(flat)))).split([s.numel() for s in scores.values()])
    return {n: part.view_as(s) for (n, s), part in zip(scores.items(), parts, strict=True)}
