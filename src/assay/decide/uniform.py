"""Playing without learning: the floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.decide.base import Action, Learner, Policy


@dataclass(frozen=True, kw_only=True)
class UniformArms(Learner):
    """Every arm with probability 1 / K, whatever the context and the costs."""

    def policy(self, arms: int, features: int, seeds: Sequence[int]) -> Policy:
        """A policy that learns nothing."""
        return _UniformPolicy(arms, features, seeds)


class _UniformPolicy(Policy):
    def act(self, context: Tensor | None = None) -> Action:
        """A uniform arm."""
        if context is not None:
            self.check_context("UniformArms", context)
        return self.draw(torch.full((len(self.seeds), self.arms), 1 / self.arms, dtype=torch.float64))

    def update(self, context: Tensor | None, arm: Int[Tensor, " b"], cost: Float[Tensor, " b"]) -> None:
        """Nothing to learn."""
        self.check_outcome("UniformArms", arm, cost)
