"""Data diet: drop the samples that a few short runs find easy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.curate.base import Selector
from assay.curate.el2n import el2n_runs, el2n_scores
from assay.curate.forgetting import ForgettingTracker, forget_scores
from assay.curate.grand import grand_runs, grand_scores
from assay.curate.subsets import offset_subset, prune_by_score, ranking, within_classes
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import State, Supervised, Trainer, fit

__all__ = [
    "DataDiet", "FittedDiet", "ForgettingTracker", "el2n_scores", "forget_scores", "grand_scores", "offset_subset",
    "prune_by_score",
]  # fmt: skip
SCORES = ("el2n", "grand", "forget")


@dataclass(frozen=True)
class FittedDiet:
    """What the short runs found: ``runs_`` (K, n) scores of each, ``scores_`` (n,) their mean, of data with ``y_``."""

    runs_: Float[Tensor, "k n"]
    y_: Int[Tensor, " n"]

    @property
    def scores_(self) -> Float[Tensor, " n"]:
        """Higher is harder. Infinite where some run never learnt the sample (forgetting scores only)."""
        return self.runs_.mean(0)

    def select(
        self, keep: float = 0.5, offset: float = 0.0, *, per_class: bool = False, seed: int = 0
    ) -> Int[Tensor, " k"]:
        """Positions, ascending, of the share ``keep`` after the share ``offset`` that is hardest; see offset_subset.

        ``per_class`` ranks each class alone, so that every class keeps the same share.
        """
        scores = within_classes(self.scores_, self.y_, seed=seed) if per_class else self.scores_
        return offset_subset(scores, keep, offset, seed=seed)

    def kept_by_class(self, rows: Int[Tensor, " k"]) -> Float[Tensor, " c"]:
        """The share of each class that ``rows`` keep: what a diet does to the balance of classes."""
        size = torch.bincount(self.y_)
        return torch.bincount(self.y_[rows], minlength=len(size)) / size.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class DataDiet(Selector):
    """Keep the samples with the highest score, averaged over ``n_models`` short runs (Paul et al., 2021,
    arXiv:2107.07075, sections 2 and 3).

    Each run trains new weights of the model's architecture for ``epochs`` >= 0 (``steps`` overrides them) by
    ``trainer`` (absent: the paper's SGD, rate 0.1, Nesterov momentum 0.9, weight decay 5e-4, batches of 128), then
    scores all samples in evaluation mode: "el2n" (el2n_scores), "grand" (grand_scores), or "forget", counted while
    training (ForgettingTracker; InputError for a trainer that states no objective, has a ``fit`` of its own, as those
    of two networks, or predicts other samples than the batch). The share ``offset`` in [0, 1) of the hardest is left
    out: with wrong labels it should be about their rate. ``per_class`` keeps the same share of every class. "grand"
    without training warns: that part of the paper did not reproduce (Kirsch, 2023, arXiv:2303.14753).
    """

    score: Literal["el2n", "grand", "forget"] = "el2n"
    n_models: int = 10
    epochs: int = 10
    steps: int | None = None
    offset: float = 0.0
    per_class: bool = False
    trainer: Trainer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in SCORES:
            raise unknown("score of DataDiet", str(self.score), SCORES)
        if self.n_models < 1 or self.epochs < 0 or not 0 <= self.offset < 1:
            raise InputError(
                f"DataDiet: n_models={self.n_models}, epochs={self.epochs}, offset={self.offset}; "
                "expected n_models >= 1, epochs >= 0, 0 <= offset < 1"
            )

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> FittedDiet:
        """The scores of every sample of ``data``."""
        check_inputs("DataDiet", data.x, data.y, data.bounds)
        if self.score == "grand" and self._trainer().plan().total(len(data)) == 0:
            warnings.warn(
                "DataDiet: GraNd at initialisation follows the norm of the input, not the importance of the sample "
                "(Kirsch, 2023, arXiv:2303.14753); expected epochs >= 1",
                RuntimeWarning,
                stacklevel=2,
            )
        seeds = [derive(seed, "data diet", k) for k in range(self.n_models)]
        return FittedDiet(torch.stack([self._run(fresh(model, seed=s), data, s) for s in seeds]), data.y)

    def select(self, model: nn.Module, data: Data, n: int, *, seed: int) -> Int[Tensor, " n"]:
        """Positions of the ``n`` samples to keep."""
        self.check(data, n)
        skip = round(self.offset * len(data))
        if skip + n > len(data):
            raise InputError(f"DataDiet: n={n} after an offset of {skip} of {len(data)} samples; expected as many left")
        scores = self.fit(model, data, seed=seed).scores_
        if self.per_class:
            scores = within_classes(scores, data.y, seed=seed)
        return ranking(scores, seed=seed)[skip : skip + n].sort().values

    def _trainer(self) -> Trainer:
        paper = Supervised(batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="constant")
        return replace(self.trainer or paper, epochs=self.epochs, steps=self.steps)

    def _run(self, start: nn.Module, data: Data, seed: int) -> Float[Tensor, " n"]:
        """One run's scores, from its starting weights."""
        trainer = self._trainer()
        if self.score == "forget":
            return _forgetting(trainer, start, data, seed)
        trained = trainer.fit(start, data, seed=seed)
        if self.score == "grand":
            return grand_runs([trained], data.x, data.y)[0]
        return el2n_runs([trained], data.x, data.y)[0]


def _forgetting(trainer: Trainer, start: nn.Module, data: Data, seed: int) -> Float[Tensor, " n"]:
    """Forgetting scores of one run: the predictions are those that the objective makes of each batch."""
    who = type(trainer).__name__
    if type(trainer).objective is Trainer.objective:
        raise InputError(f"DataDiet: {who} states no objective; expected a trainer that does for score='forget'")
    if type(trainer).fit is not Trainer.fit:
        raise InputError(f"DataDiet: {who} trains in its own way; expected one objective and plan for score='forget'")
    tracker = ForgettingTracker(len(data))

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        seen: list[Tensor] = []
        handle = model.register_forward_hook(lambda _m, _i, logits: seen.append(logits.detach()))
        try:
            loss = trainer.objective(model, batch, state)
        finally:
            handle.remove()
        if not seen or len(seen[0]) != len(batch.y):
            rows = len(seen[0]) if seen else 0
            raise InputError(f"DataDiet: {who} predicts {rows} of {len(batch.y)} samples; expected one prediction each")
        tracker.update(state.rows(batch.index), seen[0].argmax(1) == batch.y)
        return loss

    fit(start, data, objective, trainer.plan(), seed=seed)
    return tracker.scores()
