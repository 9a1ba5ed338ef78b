"""A pool of feature extractors at random stages of their training on the synthetic set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.random import derive, numpy_rng
from assay.subject import fresh
from assay.training import Plan, State, fit


class Targets(Protocol):
    """Images and their targets."""

    @property
    def x_syn_(self) -> Tensor: ...

    @property
    def y_syn_(self) -> Tensor: ...


def targeted(found: Targets) -> Data:
    """The images with the field "target"."""
    labels = torch.zeros(len(found.x_syn_), dtype=torch.int64)
    fields = {"target": found.y_syn_}
    return Data(found.x_syn_, labels, ("", " "), (-torch.inf, torch.inf), name="distilled", fields=fields)


def squared(model: nn.Module, batch: Batch, state: State) -> Tensor:
    """Mean squared error to the targets: the inner objective, without augmentation (eq. 4)."""
    return F.mse_loss(model(batch.x), batch.fields["target"])


@dataclass
class ModelPool:
    """Extractors, each with its optimiser (heavy-ball SGD) and the number of its steps (Zhou et al., 2022,
    arXiv:2206.00719, algorithm 1, as used by Lee et al., 2023, arXiv:2310.06511).

    ``update`` moves one by a step on the present synthetic set; one that has made ``online_iters`` steps is replaced by
    new weights and counts from 0 (the official code of the latter leaves the count where it was, so that every later
    turn replaces the network again).
    """

    models: list[nn.Module]
    optimizers: list[torch.optim.Optimizer]
    steps: list[int]
    online_iters: int
    lr: float
    weight_decay: float
    seed: int
    replaced: int = 0

    @classmethod
    def trained(
        cls,
        extractor: nn.Module,
        start: Targets,
        *,
        size: int,
        online_iters: int,
        lr: float = 0.1,
        weight_decay: float = 1e-3,
        seed: int,
    ) -> ModelPool:
        """A pool whose networks have made 1 to online_iters - 1 steps on ``start``."""
        pool = cls([], [], [], online_iters, lr, weight_decay, seed)
        for k in range(size):
            steps = int(numpy_rng(seed, "steps", k).integers(1, online_iters))
            pool._add(extractor, start, steps, derive(seed, k))
        return pool

    def _add(self, extractor: nn.Module, start: Targets, steps: int, seed: int) -> None:
        """One more network, with the optimiser that trained it."""
        data = targeted(start)

        def make(parameters: object) -> torch.optim.Optimizer:
            self.optimizers.append(self._optimizer(parameters))
            return self.optimizers[-1]

        plan = Plan(steps=steps, batch_size=len(data), optimizer=make, schedule="constant")
        self.models.append(fit(fresh(extractor, seed=seed), data, squared, plan, seed=seed))
        self.steps.append(steps)

    def _optimizer(self, parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=self.weight_decay)  # type: ignore[arg-type]

    def drawn(self, turn: int) -> int:
        """Which network a turn takes."""
        return int(numpy_rng(self.seed, "turn", turn).integers(len(self.models)))

    def update(self, k: int, x: Tensor, y: Tensor) -> None:
        """One step of network ``k`` on (x, y), or new weights where it has made its steps."""
        if self.steps[k] >= self.online_iters:
            self.replaced += 1
            self.models[k] = fresh(self.models[k], seed=derive(self.seed, "new", self.replaced)).eval()
            self.optimizers[k], self.steps[k] = self._optimizer(self.models[k].parameters()), 0
            return
        model = self.models[k].train()
        self.optimizers[k].zero_grad(set_to_none=True)
        try:
            F.mse_loss(model(x), y).backward()
        except ValueError as error:
            raise InputError(
                f"model pool: a batch norm reads one value a channel of {len(x)} images; expected more of them"
            ) from error
        self.optimizers[k].step()
        self.steps[k] += 1
        model.eval()
