"""Unlearning in regression with targets drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.random import Draws
from assay.subject import Subject
from assay.training import State
from assay.unlearn.base import joined, together
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner
from assay.unlearn.regression import distance, targets
from assay.unlearn.single import outputs_of


@dataclass(frozen=True, kw_only=True)
class GaussianAmnesiac(PassUnlearner):
    """Learn a random target for each forgotten sample (Tarun et al., 2022, arXiv:2210.08196, section 4.1).

    Absolute error over both sets shuffled together, true targets on ``retain``; on ``forget`` independent draws from
    N(mu, sigma^2), mean and standard deviation (n - 1) of all training targets, made once and not clipped. Targets are
    in the field "target" of the data, (n,) or (n, k) floats; outputs (n,), (n, 1) or (n, k). ``control`` has the true
    ones throughout. Raises InputError for class labels. Other options: see PassUnlearner.
    """

    task: ClassVar[str] = "regression"

    epochs: int = 1
    lr: float = 1e-3
    batch_size: int = 256
    optimizer: Literal["sgd", "adam"] = "adam"

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """Every epoch goes over both sets together."""
        return [[("both", joined(forget, retain))]] * self.epochs

    def drawn(self, train: Data, forget: Data, *, seed: int) -> Tensor:
        """The targets (m, k) that are learned for ``forget``."""
        every = targets(train, "GaussianAmnesiac")
        return every.mean(0) + every.std(0) * Draws(seed, "amnesiac", forget.index).normal(every.shape[1]).to(every)

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """The distance from the target of each sample."""
        train = together(subject.training("GaussianAmnesiac"), forget, retain)
        aims = targets(train, "GaussianAmnesiac").clone()
        order = train.index.argsort()
        known = train.index[order]
        if not control:
            aims[order[torch.searchsorted(known, forget.index)]] = self.drawn(train, forget, seed=seed)

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            rows = order[torch.searchsorted(known, batch.index.cpu())]
            return distance(outputs_of(model, batch.x), aims[rows].to(batch.x.device))

        return loss
