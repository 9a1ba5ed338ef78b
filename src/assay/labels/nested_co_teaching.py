"""Nested co-teaching: two networks, as wide as was chosen, pick for each other the samples that look clean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.data import Batch, Data
from assay.labels.elr_plus import OTHER, MeanLogits
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import evaluating
from assay.runtime.random import seeded
from assay.subject import fresh
from assay.training import Player, State, Trainer, fit_players


@dataclass(frozen=True, kw_only=True)
class NestedCoTeaching(Trainer):
    """Two networks, each trained on the samples of small loss that the other one chose.

    Han et al., 2018, arXiv:1804.06872, in the compressed form of Chen et al., 2022, arXiv:2206.13140 (stage 2): each
    batch is split into two halves, network 1 ranks the first by cross-entropy and network 2 the second, in evaluation
    mode, thus at the width chosen before where they compress (see NestedClassifier); each keeps the (1 - r) share of
    least loss, one sample at least; then network 1 learns from what network 2 kept and the other way round, with the
    same random numbers, hence with one common draw of the width. ``split="shared"`` has both rank the whole batch, as
    the first paper. r is ``forget_rate`` in [0, 1), reached linearly over ``n_gradual`` epochs where that is above 0.
    ``freeze_norm`` leaves the statistics of batch norm as they are.

    ``fit(model, data, *, seed, partner=None)`` returns the mean of the two networks' logits: the second starts from
    ``partner``, or from fresh weights. The paper fine-tunes two networks of stage 1 at a small rate. A last batch of
    one sample goes to both. Raises InputError for other options and for fewer than two samples.
    """

    forget_rate: float = 0.2
    n_gradual: int = 0
    split: Literal["halves", "shared"] = "halves"
    freeze_norm: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.forget_rate < 1 or self.n_gradual < 0:
            given = f"forget_rate={self.forget_rate}, n_gradual={self.n_gradual}"
            raise InputError(f"NestedCoTeaching: {given}; expected a rate in [0, 1), epochs >= 0")
        if self.split not in ("halves", "shared"):
            raise unknown("split of NestedCoTeaching", self.split, ("halves", "shared"))

    def rate(self, epoch: int) -> float:
        """The share of samples that is left out at ``epoch``, counted from 0."""
        return self.forget_rate * min(epoch / max(self.n_gradual - 1, 1), 1.0) if self.n_gradual else self.forget_rate

    def small_loss(self, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], rate: float) -> Int[Tensor, " k"]:
        """Positions of the int((1 - rate) n) samples of least cross-entropy, one at least."""
        kept = max(int((1 - rate) * len(y) + 1e-9), 1)
        return F.cross_entropy(logits, y, reduction="none").argsort()[:kept]

    @torch.no_grad()
    def chosen(self, models: Mapping[str, nn.Module], batch: Batch, state: State) -> dict[str, Int[Tensor, " k"]]:
        """For each network the rows of the batch that it keeps."""
        rows = torch.arange(len(batch.y), device=batch.y.device)
        half = len(rows) // 2
        parts = (rows[:half], rows[half:]) if self.split == "halves" and half else (rows, rows)
        found = {}
        for (name, model), part in zip(models.items(), parts, strict=True):
            with evaluating(model):
                found[name] = part[self.small_loss(model(batch.x[part]), batch.y[part], self.rate(state.epoch))]
        return found

    def loss(self, name: str, models: Mapping[str, nn.Module], batch: Batch, state: State) -> Float[Tensor, ""]:
        """Cross-entropy of one network on the other one's choice. Both choose before either moves."""
        if name == "first":
            for key, kept in self.chosen(models, batch, state).items():
                state.memory[f"co-teaching/{key}"] = kept
        rows, model = state.memory[f"co-teaching/{OTHER[name]}"], models[name]
        if self.freeze_norm:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        with seeded(state.seed, "co-teaching", state.step):
            return F.cross_entropy(model(batch.x[rows]), batch.y[rows])

    def fit(
        self, model: nn.Module, data: Data, *, seed: int, partner: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        check_inputs("NestedCoTeaching", data.x, data.y, data.bounds)
        if len(data) < 2:
            raise InputError(f"NestedCoTeaching: {len(data)} sample; expected two or more")
        starts = {"first": model, "second": fresh(model, seed=seed) if partner is None else partner}
        players = {
            name: Player(model=start, objective=partial(self.loss, name), plan=self.plan())
            for name, start in starts.items()
        }
        return MeanLogits(**fit_players(players, data, seed=seed, **options)).eval()
