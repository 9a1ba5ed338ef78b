"""The one loop of rounds: context, action, cost, update; and the regret that it adds up to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.decide.base import Learner
from assay.runtime.errors import InputError


class Environment(Protocol):
    """Rounds on b lanes, one a seed. The runner alone sees ``costs``; a learner is told that of its own arm."""

    arms: int
    features: int
    rounds: int
    seeds: tuple[int, ...]

    def context(self, t: int) -> Tensor | None:
        """What the learner sees in round ``t`` (see Policy)."""

    def costs(self, t: int) -> Float[Tensor, "b k"]:
        """The cost in [0, 1] of every arm in round ``t``."""


@dataclass(frozen=True, eq=False)
class BanditHistory:
    """A run of T rounds on b lanes: ``arm``, ``cost`` and cumulative ``regret`` (b, T), ``probs`` (b, T, K), seconds.

    Regret is against the cheapest arm of each round.
    """

    arm: Int[Tensor, "b t"]
    cost: Float[Tensor, "b t"]
    regret: Float[Tensor, "b t"]
    probs: Float[Tensor, "b t k"]
    seconds: float

    @property
    def total(self) -> Float[Tensor, " b"]:
        """The cost of all rounds."""
        return self.cost.sum(1)


def run_bandit(
    learner: Learner, env: Environment, rounds: int | None = None, *, seeds: Sequence[int] | None = None
) -> BanditHistory:
    """``learner`` on the first ``rounds`` rounds of ``env`` (absent: all), all lanes stepped together.

    ``seeds``: the learner's own, one a lane; absent, those of the environment. InputError for more rounds than there
    are, or another number of seeds than lanes.
    """
    count = env.rounds if rounds is None else rounds
    own = env.seeds if seeds is None else tuple(seeds)
    if not 1 <= count <= env.rounds:
        raise InputError(f"run_bandit: {count} rounds; expected 1 to {env.rounds}")
    if len(own) != len(env.seeds):
        raise InputError(f"run_bandit: {len(own)} seeds; expected {len(env.seeds)}, one a lane")
    policy = learner.start(env.arms, env.features, seeds=own)
    arms, costs, regrets, probs = [], [], [], []
    start = time.perf_counter()
    for t in range(count):
        context = env.context(t)
        arm, p = policy.act(context)
        every = env.costs(t).double()
        cost = every.gather(1, arm[:, None])[:, 0]
        policy.update(context, arm, cost)
        arms.append(arm)
        costs.append(cost)
        regrets.append(cost - every.min(1).values)
        probs.append(p)
    seconds = time.perf_counter() - start
    regret = torch.stack(regrets, 1).cumsum(1)
    return BanditHistory(torch.stack(arms, 1), torch.stack(costs, 1), regret, torch.stack(probs, 1), seconds)
