"""Unlearners that train on the forget set and the retain set in turn, as one run of one optimiser."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.subject import Subject
from assay.training import Plan, State, fit
from assay.training.engine import Hook
from assay.unlearn.base import Unlearner, keep_at

Pass = tuple[str, Data]
PassLoss = Callable[[nn.Module, str, Batch, State], Tensor]


def cycled(data: Data, size: int, step: int, *, seed: int) -> Batch:
    """The batch of ``size`` at most that step ``step`` takes from ``data``, gone over again and again in new orders."""
    turn, j = divmod(step, -(-len(data) // size))
    order = torch.randperm(len(data), generator=torch_rng(seed, "cycle", turn))
    return data.batch(order[j * size : (j + 1) * size])


def fit_passes(
    model: nn.Module, epochs: Sequence[Sequence[Pass]], loss: PassLoss, plan: Plan, *, seed: int, hooks: Sequence[Hook]
) -> nn.Module:
    """A copy of ``model`` after training on one named set after the other, in batches of ``plan.batch_size``.

    ``epochs`` lists the passes of each epoch; ``loss(model, name, batch, state)`` is told which set it stands in.
    ``plan`` gives optimiser, rate and schedule over all steps. The order of each pass follows from the seed.
    """
    passes = [p for epoch in epochs for p in epoch]
    ends = list(accumulate((-(-len(data) // plan.batch_size) for _, data in passes), initial=0))

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        k = bisect_right(ends, state.step) - 1
        name, data = passes[k]
        order = torch.randperm(len(data), generator=torch_rng(seed, "pass", k))
        first = (state.step - ends[k]) * plan.batch_size
        return loss(model, name, data.batch(order[first : first + plan.batch_size]).to(batch.x.device), state)

    # The engine counts the steps over one sample; what is trained on comes from the passes.
    clock = Plan(
        steps=ends[-1],
        batch_size=1,
        optimizer=plan.optimizer,
        lr=plan.lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        schedule=plan.schedule,
        clip=plan.clip,
    )
    if not passes:
        return copy.deepcopy(model).eval()
    return fit(model, passes[0][1][:1], objective, clock, seed=seed, hooks=hooks)


@dataclass(frozen=True, kw_only=True)
class PassUnlearner(Unlearner):
    """An unlearner that trains from the subject's weights in passes. A subclass states ``passes`` and ``losses``.

    ``epochs`` >= 0, ``lr`` > 0, ``batch_size`` >= 1, at a constant rate.
    """

    epochs: int = 5
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 64
    optimizer: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.lr > 0 or self.batch_size < 1 or not self.weight_decay >= 0:
            raise InputError(
                f"{type(self).__name__}: epochs={self.epochs}, lr={self.lr}, batch_size={self.batch_size}, "
                f"weight_decay={self.weight_decay}; expected epochs, weight_decay >= 0, lr > 0, batch_size >= 1"
            )

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """The named sets that each epoch goes over."""
        raise TypeError(f"{type(self).__name__} states no passes")

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """The loss of a batch of a named set, of the method or of its control."""
        raise TypeError(f"{type(self).__name__} states no loss")

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """See Unlearner."""
        return self.train(subject, forget, retain, seed=seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """See Unlearner."""
        return self.train(subject, forget, retain, seed=seed, control=True)

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See Unlearner."""
        steps = [sum(-(-len(d) // self.batch_size) for _, d in e) for e in self.passes(forget, retain, seed=seed)]
        kept: list[nn.Module] = []
        last = self.train(subject, forget, retain, seed=seed, hooks=[keep_at(list(accumulate(steps))[:-1], kept)])
        return [*kept, last]

    def train(
        self,
        subject: Subject,
        forget: Data,
        retain: Data,
        *,
        seed: int,
        control: bool = False,
        hooks: Sequence[Hook] = (),
    ) -> nn.Module:
        """The trained model of the method or of its control; ``hooks`` run after every step, as in training.fit."""
        self.check(subject, forget, retain)
        plan = Plan(
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="constant",
        )
        loss = self.losses(subject, forget, retain, seed=seed, control=control)
        epochs = self.passes(forget, retain, seed=seed)
        return fit_passes(subject.model, epochs, loss, plan, seed=seed, hooks=hooks)
