"""Train again without the samples whose labels are suspect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from assay.data import Data
from assay.labels.confident_learning import ConfidentLearning
from assay.labels.confident_learning import Prune as PruneRule
from assay.labels.cross_validate import cross_probabilities
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng
from assay.subject import Subject, fresh
from assay.training import Trainer


@dataclass(frozen=True, kw_only=True)
class PruneAndRetrain:
    """Learning with the suspects removed (Northcutt et al., 2021, arXiv:1911.00068, section 3.3).

    Out-of-sample probabilities come from ``folds``-fold cross-validation with the subject's recipe; the suspects are
    those of ConfidentLearning(prune=``prune``); the model is trained from fresh weights on the rest.
    """

    kind: ClassVar[str] = "repair"

    folds: int = 5
    prune: PruneRule = "noise-rate"

    def suspects(self, subject: Subject, *, seed: int) -> Bool[Tensor, " n"]:
        """Which samples of ``subject.train`` are removed."""
        train, recipe = self._material(subject)
        probs = cross_probabilities(subject.model, recipe, train, folds=self.folds, seed=seed)
        found = ConfidentLearning(prune=self.prune).fit(train.y.numpy(), probs.numpy())
        return torch.from_numpy(found.suspects_)

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """A model trained without the suspects."""
        return self._retrain(subject, ~self.suspects(subject, seed=seed), seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module:
        """A model trained without as many samples of each class, drawn at random."""
        suspects, rng = self.suspects(subject, seed=seed).numpy(), numpy_rng(seed, "prune control")
        y = self._material(subject)[0].y.numpy()
        keep = np.ones(len(y), bool)
        for c in np.unique(y[suspects]):
            keep[rng.choice(np.flatnonzero(y == c), int(suspects[y == c].sum()), replace=False)] = False
        return self._retrain(subject, torch.from_numpy(keep), seed)

    def _material(self, subject: Subject) -> tuple[Data, Trainer]:
        train = subject.training("PruneAndRetrain")
        if subject.recipe is None:
            raise InputError(f"PruneAndRetrain: subject {subject.name!r} has no recipe; expected one to retrain with")
        return train, subject.recipe

    def _retrain(self, subject: Subject, keep: Bool[Tensor, " n"], seed: int) -> nn.Module:
        train, recipe = self._material(subject)
        return recipe.fit(fresh(subject.model, seed=seed), train[keep], seed=seed)
