"""The contract of selectors: which training samples are worth training on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import AccessError, InputError
from assay.subject import Subject, fresh
from assay.training import Trainer


@dataclass(frozen=True, kw_only=True)
class Selector:
    """``select(model, data, n, *, seed)``: positions (n,) in ``data`` of the samples to keep, distinct and ascending.

    ``model`` says which architecture is trained and, where the method scores with it, lends its weights. As a repair
    the subject's network is trained from new weights, by its recipe, on the share ``keep`` in (0, 1] of its training
    data, for as many *steps* as on all of them; ``control`` does the same on a random subset of the same size.
    """

    kind: ClassVar[str] = "selector"
    contract: ClassVar[bool] = True

    keep: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.keep) and 0 < self.keep <= 1):
            raise InputError(f"{type(self).__name__}: keep={self.keep}; expected a share in (0, 1]")

    def select(self, model: nn.Module, data: Data, n: int, *, seed: int) -> Int[Tensor, " n"]:
        """Positions of the ``n`` samples to keep."""
        raise TypeError(f"{type(self).__name__} does not select")

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """A network trained on what is selected. AccessError without training data or recipe."""
        return self._retrain(subject, self, seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """The same training on a random subset of the same size."""
        from assay.curate.random_subset import RandomSubset

        return self._retrain(subject, RandomSubset(keep=self.keep), seed)

    def _retrain(self, subject: Subject, selector: Selector, seed: int) -> nn.Module:
        who = type(self).__name__
        train = subject.training(who)
        if subject.recipe is None:
            raise AccessError(f"{who} needs the training recipe; the subject has none")
        rows = selector.select(subject.model, train, max(round(self.keep * len(train)), 1), seed=seed)
        recipe = at_equal_steps(subject.recipe, len(train))
        return recipe.fit(fresh(subject.model, seed=seed), train[rows], seed=seed)

    def check(self, data: Data, n: int) -> None:
        """The checks that all selectors make."""
        who = type(self).__name__
        check_inputs(who, data.x, None, data.bounds)
        check_labels(who, data.y, len(data), len(data.classes))
        if not 1 <= n <= len(data):
            raise InputError(f"{who}: n={n} of {len(data)} samples; expected 1 to {len(data)}")


def at_equal_steps(trainer: Trainer, n: int) -> Trainer:
    """``trainer`` with the number of steps that it makes on ``n`` samples, whatever it is then given."""
    return replace(trainer, steps=trainer.plan().total(n))
