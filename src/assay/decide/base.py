"""The contract of learners: they act, see what their action cost, and learn from that alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng


class Action(NamedTuple):
    """What is played in a round of b lanes: ``arm`` (b,) int64, drawn from ``probs`` (b, K) float64."""

    arm: Int[Tensor, " b"]
    probs: Float[Tensor, "b k"]


class Policy(ABC):
    """A learner at work on b lanes, one for each seed: independent runs that are stepped together.

    ``context`` is (b, K, D), the features of every arm; or (b, d), a vector that arm a sees at block a of D = dK
    features that are zero elsewhere; or None. What lane i plays depends on its own seed and rounds only. A policy
    changes as it learns; the learner that started it does not.
    """

    def __init__(self, arms: int, features: int, seeds: Sequence[int]) -> None:
        self.arms, self.features, self.seeds = arms, features, tuple(seeds)
        self._rngs = [numpy_rng(seed, "policy") for seed in self.seeds]

    @abstractmethod
    def act(self, context: Tensor | None = None) -> Action:
        """The arms of this round."""

    @abstractmethod
    def update(self, context: Tensor | None, arm: Int[Tensor, " b"], cost: Float[Tensor, " b"]) -> None:
        """Learn from the cost in [0, 1] of the arm that was played; what the others would have cost stays unknown."""

    def draw(self, probs: Float[Tensor, "b k"]) -> Action:
        """One arm a lane, by inversion of a uniform number of the lane's own stream."""
        u = torch.tensor([[rng.random()] for rng in self._rngs], dtype=torch.float64)
        arm = (probs.cumsum(1) <= u).sum(1)
        last = self.arms - 1 - (probs > 0).flip(1).int().argmax(1)  # rounding never plays an arm of probability 0
        return Action(torch.minimum(arm, last), probs)

    def normal(self, n: int) -> Float[Tensor, "b n"]:
        """Standard normal numbers of the lanes' own streams."""
        return torch.from_numpy(np.stack([rng.standard_normal(n) for rng in self._rngs]))

    def check_context(self, where: str, context: Tensor | None) -> Tensor:
        """The context, once it has one of the two shapes and is finite; InputError otherwise."""
        b, k, d = len(self.seeds), self.arms, self.features
        shapes = {(b, k, d)} | ({(b, d // k)} if d % k == 0 else set())
        if not isinstance(context, Tensor) or tuple(context.shape) not in shapes:
            found = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise InputError(f"{where}: context {found}; expected a tensor of shape {' or '.join(map(str, shapes))}")
        if not torch.isfinite(context).all():
            raise InputError(f"{where}: the context has NaN or infinite values; expected finite ones")
        return context

    def check_outcome(self, where: str, arm: Tensor, cost: Tensor) -> None:
        """One arm and one cost in [0, 1] a lane; InputError otherwise."""
        b = len(self.seeds)
        if arm.shape != (b,) or arm.dtype != torch.int64 or arm.min() < 0 or arm.max() >= self.arms:
            raise InputError(f"{where}: arm {arm.dtype} {tuple(arm.shape)}; expected int64 ({b},) below {self.arms}")
        if cost.shape != (b,) or not bool(((cost >= 0) & (cost <= 1)).all()):
            raise InputError(f"{where}: cost {tuple(cost.shape)}; expected ({b},) with values in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Learner(ABC):
    """A way to learn from the costs of one's own actions; its fields are the hyper-parameters.

    ``start(arms, features, *, seeds) -> Policy`` begins one run a seed. ``run_bandit`` plays it against an environment
    and measures regret. Fewer than two arms or no seed: InputError.
    """

    kind: ClassVar[str] = "learner"

    def start(self, arms: int, features: int, *, seeds: Sequence[int]) -> Policy:
        """A fresh policy for K = ``arms`` and D = ``features`` numbers an arm."""
        if arms < 2 or features < 0 or len(seeds) == 0:
            where = type(self).__name__
            raise InputError(
                f"{where}: {arms} arms, {features} features, {len(seeds)} seeds; expected >= 2, >= 0 and >= 1"
            )
        return self.policy(arms, features, seeds)

    @abstractmethod
    def policy(self, arms: int, features: int, seeds: Sequence[int]) -> Policy:
        """What ``start`` returns, its arguments checked."""
