"""Exact unlearning by shards."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws, derive
from assay.subject import Subject, fresh
from assay.unlearn.base import Unlearner, recipe_of, together

AGGREGATES = ("mean", "vote")


class Sharded(nn.Module):
    """The models of all shards as one: log of the mean of their probabilities, or of their shares of votes.

    ``checkpoints[s][r]`` are the weights of shard s after its first r slices; ``seed`` says which sample lies where.
    """

    known: Tensor

    def __init__(
        self, checkpoints: list[list[nn.Module]], aggregate: Literal["mean", "vote"], seed: int, known: Tensor
    ) -> None:
        super().__init__()
        self.checkpoints = nn.ModuleList(nn.ModuleList(shard) for shard in checkpoints)
        self.aggregate, self.seed = aggregate, seed
        self.register_buffer("known", known)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([shard[-1](x) for shard in self.checkpoints])  # type: ignore[index]
        if self.aggregate == "mean":
            return logits.log_softmax(2).logsumexp(0) - torch.tensor(len(logits)).log()
        votes = nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(0)
        return votes.clamp_min(1e-6).log()


@dataclass(frozen=True, kw_only=True)
class SISA(Unlearner):
    """Train a model a shard, slice by slice, and retrain from where a forgotten sample came in (Bourtoule et al., 2021,
    arXiv:1912.03817, section 4: sharded, isolated, sliced, aggregated).

    Every sample falls into one of ``shards`` shards and one of ``slices`` slices by its index and the seed, whatever
    else there is. A shard's network starts from new weights and is trained by the subject's recipe on its first slice,
    then on its first two, and so on; each stage makes 2 / (``slices`` + 1) of the recipe's epochs or steps, rounded, as
    in the paper's section 7. ``aggregate``: "mean" of probabilities, or "vote". ``fit`` trains the ensemble on all the
    data. ``forget`` of a subject whose model came from ``fit`` retrains only the stages that saw a forgotten sample; of
    any other subject it trains the ensemble without them. Both give the same weights, bit for bit, as training on
    ``retain`` alone: exact by construction. ``control`` is ``fit`` on all the data. Raises AccessError without a
    recipe, InputError where a shard is left with no sample.
    """

    shards: int = 5
    slices: int = 1
    aggregate: Literal["mean", "vote"] = "mean"

    def __post_init__(self) -> None:
        if self.shards < 1 or self.slices < 1:
            raise InputError(f"SISA: shards={self.shards}, slices={self.slices}; expected at least 1 of each")
        if self.aggregate not in AGGREGATES:
            raise unknown("aggregate of SISA", str(self.aggregate), AGGREGATES)

    def fit(self, subject: Subject, data: Data, *, seed: int) -> Sharded:
        """The ensemble trained on ``data``, with its checkpoints. The subject lends its architecture and recipe."""
        return self._trained(subject, self._architecture(subject), data, None, seed)

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The ensemble without ``forget``."""
        self.check(subject, forget, retain)
        start = subject.model if isinstance(subject.model, Sharded) else None
        if start is not None and not torch.equal(
            torch.cat([forget.index, retain.index]).sort().values, start.known.sort().values.cpu()
        ):
            raise InputError("SISA: forget and retain are not what the ensemble was trained on; expected all of it")
        return self._trained(subject, self._architecture(subject), retain, start, seed if start is None else start.seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The ensemble of all the data."""
        train = self.check(subject, forget, retain)
        return self.fit(subject, together(train, forget, retain), seed=seed)

    def places(self, index: Tensor, seed: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The shard and the slice of each sample."""
        draws = Draws(seed, "sisa", index)
        return draws.integers(self.shards, 1)[:, 0], draws.integers(self.slices, 1)[:, 0]

    def affected(self, model: Sharded, index: Tensor) -> list[int]:
        """The first slice of each shard that holds one of the samples ``index``; ``slices`` where none does."""
        shard, part = self.places(index, model.seed)
        first = torch.full((self.shards,), self.slices).scatter_reduce(0, shard, part, "amin")
        return [int(k) for k in first]

    def _architecture(self, subject: Subject) -> nn.Module:
        model = subject.model
        if not isinstance(model, Sharded):
            return model
        shape = (len(model.checkpoints), len(model.checkpoints[0]))  # type: ignore[arg-type]
        if shape != (self.shards, self.slices):
            raise InputError(
                f"SISA: shards={self.shards}, slices={self.slices}; the ensemble has {shape}, expected those"
            )
        return model.checkpoints[0][0]  # type: ignore[index]

    def _trained(
        self, subject: Subject, architecture: nn.Module, data: Data, before: Sharded | None, seed: int
    ) -> Sharded:
        recipe = recipe_of(subject, "SISA")
        share = 2 / (self.slices + 1)
        steps = None if recipe.steps is None else max(round(share * recipe.steps), min(recipe.steps, 1))
        stage = replace(recipe, epochs=max(round(share * recipe.epochs), 1), steps=steps)
        shard, part = self.places(data.index, seed)
        known = before.known.cpu() if before is not None else data.index
        intact = self.affected(before, known[~torch.isin(known, data.index)]) if before is not None else []
        checkpoints: list[list[nn.Module]] = []
        for s in range(self.shards):
            model, kept = fresh(architecture, seed=derive(seed, "shard", s)), list[nn.Module]()
            for r in range(self.slices):
                if before is not None and r < intact[s]:
                    model = copy.deepcopy(before.checkpoints[s][r])  # type: ignore[index]
                else:
                    rows = (shard == s) & (part <= r)
                    if not rows.any():
                        raise InputError(f"SISA: shard {s} has no sample left; expected fewer shards or slices")
                    model = stage.fit(model, data[rows], seed=derive(seed, "shard", s, "slice", r))
                kept.append(model)
            checkpoints.append(kept)
        return Sharded(checkpoints, self.aggregate, seed, data.index).eval()
