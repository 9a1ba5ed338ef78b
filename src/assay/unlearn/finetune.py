"""Unlearning by fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.training import Supervised, Trainer
from assay.training.engine import Hook
from assay.unlearn.base import Unlearner, keep_at, together


@dataclass(frozen=True, kw_only=True)
class FineTune(Unlearner):
    """Go on training on what is retained and let the rest fade (Jia et al., 2023, arXiv:2304.04934, section 3).

    SGD on the recipe's objective (cross-entropy where the subject has no recipe) from the subject's weights, ``epochs``
    >= 0 over ``retain`` at ``lr`` > 0 (the paper searches 1e-3 to 1e-1). ``control`` fine-tunes on all the data.
    """

    epochs: int = 5
    lr: float = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.lr > 0:
            raise InputError(f"FineTune: epochs={self.epochs}, lr={self.lr}; expected epochs >= 0, lr > 0")

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model after more training without ``forget``."""
        self.check(subject, forget, retain)
        return self._train(subject, retain, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model after the same training on all the data."""
        train = self.check(subject, forget, retain)
        return self._train(subject, together(train, forget, retain), seed)

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See Unlearner; weights as trained where the recipe averages them."""
        self.check(subject, forget, retain)
        total, kept = self.trainer(subject).plan().total(len(retain)), list[nn.Module]()
        ends = range(total // self.epochs, total, total // self.epochs) if self.epochs else ()
        last = self._train(subject, retain, seed, [keep_at(ends, kept)])
        return [*kept, last]

    def trainer(self, subject: Subject) -> Trainer:
        """The subject's recipe with this method's epochs, rate and momentum."""
        return replace(
            subject.recipe or Supervised(),
            epochs=self.epochs,
            steps=None,
            optimizer="sgd",
            lr=self.lr,
            momentum=self.momentum,
        )

    def _train(self, subject: Subject, data: Data, seed: int, hooks: Sequence[Hook] = ()) -> nn.Module:
        return self.trainer(subject).fit(subject.model, data, seed=seed, hooks=hooks)
