"""Shadow models: the target's recipe on random halves of the adversary's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Reference
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, derive
from assay.subject import fresh

Signal = Callable[[nn.Module, Data], Tensor]


@dataclass(frozen=True)
class Shadows:
    """``models`` (k), the ``data`` (m) that their halves were drawn from, and who saw what: ``seen`` (k, m)."""

    models: Sequence[nn.Module]
    data: Data
    seen: Bool[Tensor, "k m"]

    def rows(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
        """Where the samples named by ``index`` lie in the pool, and whether they do (any position where not)."""
        pool = self.data.index
        order = pool.argsort()
        rows = order[torch.searchsorted(pool[order], index).clamp_max(len(order) - 1)]
        return rows, pool[rows] == index

    def membership(self, index: Int[Tensor, " n"]) -> Bool[Tensor, "k n"]:
        """Which models trained on the samples named by ``index``; samples outside the pool were seen by none."""
        rows, found = self.rows(index)
        return self.seen[:, rows] & found

    def signals(self, signal: Signal, data: Data) -> Float[Tensor, "k n"]:
        """``signal(model, data)`` of every shadow model."""
        return torch.stack([signal(model, data) for model in self.models])


def train_shadows(reference: Reference, k: int, *, seed: int) -> Shadows:
    """``k`` models (even), each sample of ``reference.data`` seen by exactly half of them, drawn by its index.

    Carlini et al. (2022, arXiv:2112.03570). Raises InputError without a model or a recipe.
    """
    data = reference.data
    if reference.model is None or reference.recipe is None:
        raise InputError("shadow models: the reference has no model or no recipe; expected both")
    if k < 2 or k % 2:
        raise InputError(f"shadow models: {k} asked; expected an even number, at least 2")
    check_inputs("shadow models", data.x, data.y, data.bounds)
    if len(data.index.unique()) < len(data):
        raise InputError(f"shadow models: indices of {data.name!r} repeat; expected one name for each sample")
    rank = Draws(seed, "shadows", data.index).uniform(k).argsort(1).argsort(1)
    seen = (rank < k // 2).T
    if not seen.any(1).all():
        raise InputError(f"shadow models: {len(data)} samples leave one of {k} models without any; expected more")
    models = []
    for j in range(k):
        start = fresh(reference.model, seed=derive(seed, "shadow", j))
        models.append(reference.recipe.fit(start, data[seen[j]], seed=derive(seed, "shadow fit", j)))
    return Shadows(tuple(models), data, seen)


def average(values: Float[Tensor, "k n"], mask: Bool[Tensor, "k n"], who: str) -> Float[Tensor, " n"]:
    """Mean over the models that ``mask`` selects for each sample; InputError where there is none."""
    count = mask.sum(0)
    if not (count > 0).all():
        raise InputError(f"{who}: {int((count == 0).sum())} samples have no such shadow model; expected one at least")
    return torch.where(mask, values, 0).sum(0) / count
