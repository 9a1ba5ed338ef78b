"""Unlearning by gradient ascent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.training import Plan, State, fit
from assay.training.engine import Hook
from assay.unlearn.base import Unlearner, keep_at
from assay.unlearn.single import outputs_of


@dataclass(frozen=True, kw_only=True)
class NegGrad(Unlearner):
    """Climb the cross-entropy of what is to be forgotten (Golatkar et al., 2020, arXiv:1911.04933, section 6, "negative
    gradient"; Jia et al., 2023, arXiv:2304.04934, "GA").

    SGD at a constant rate from the subject's weights: ``epochs`` >= 0 over ``forget`` at ``lr`` > 0. The ascent has no
    bound, so both stay small (Jia et al. search lr from 1e-6 to 1e-4 on CIFAR; small sets and networks need
    more); a loss that stops being finite raises InputError. A batch of one sample leaves the statistics of batch norms.
    ``control`` makes the same steps downhill.
    """

    epochs: int = 5
    lr: float = 1e-4
    momentum: float = 0.9
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.lr > 0 or self.batch_size < 1:
            raise InputError(
                f"NegGrad: epochs={self.epochs}, lr={self.lr}, batch_size={self.batch_size}; "
                "expected epochs >= 0, lr > 0, batch_size >= 1"
            )

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model, moved up the loss of ``forget``."""
        return self._move(subject, forget, retain, -1.0, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model, moved down the loss of ``forget``."""
        return self._move(subject, forget, retain, 1.0, seed)

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See Unlearner."""
        each, kept = -(-len(forget) // self.batch_size), list[nn.Module]()
        ends = range(each, each * self.epochs, each)
        last = self._move(subject, forget, retain, -1.0, seed, [keep_at(ends, kept)])
        return [*kept, last]

    def _move(
        self, subject: Subject, forget: Data, retain: Data, sign: float, seed: int, hooks: Sequence[Hook] = ()
    ) -> nn.Module:
        self.check(subject, forget, retain)

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            return sign * F.cross_entropy(outputs_of(model, batch.x), batch.y)

        plan = Plan(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="sgd",
            lr=self.lr,
            momentum=self.momentum,
            schedule="constant",
        )
        return fit(subject.model, forget, objective, plan, seed=seed, hooks=hooks)
