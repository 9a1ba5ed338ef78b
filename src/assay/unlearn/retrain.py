"""Exact unlearning."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from assay.data import Data
from assay.subject import Subject, fresh
from assay.unlearn.base import Unlearner, recipe_of, together


@dataclass(frozen=True, kw_only=True)
class Retrain(Unlearner):
    """Train new weights by the subject's recipe on what is retained (Cao & Yang, 2015; Bourtoule et al., 2021,
    arXiv:1912.03817, section 3): exact by definition, and the measure of every other method.

    Raises AccessError where the subject has no recipe; else see Unlearner. ``control`` retrains on all the data.
    """

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """A model that never saw ``forget``."""
        self.check(subject, forget, retain)
        return self._train(subject, retain, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """New weights trained on all the data."""
        train = self.check(subject, forget, retain)
        return self._train(subject, together(train, forget, retain), seed)

    def _train(self, subject: Subject, data: Data, seed: int) -> nn.Module:
        recipe = recipe_of(subject, "Retrain")
        return recipe.fit(fresh(subject.model, seed=seed), data, seed=seed)
