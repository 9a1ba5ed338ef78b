"""The batched form of the query engine: random searches whose proposals are tensors over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.base import OBJECTIVES, AttackResult, Goal, Untargeted, check_outputs
from assay.attacks.queries import QueryAttack
from assay.runtime.random import Draws
from assay.subject.access import Access, Oracle, require

BLOCK = 64


@dataclass
class Climbers:
    """The samples that a search is still at: their ``rows`` in the batch, inputs ``x``, points ``z``, their ``value``,
    the ``queries`` spent, and what they are after and draw from.
    """

    rows: Tensor
    x: Tensor
    z: Tensor
    value: Tensor
    queries: Tensor
    goal: Goal
    draws: Draws

    def select(self, keep: Tensor) -> Climbers:
        """The samples that ``keep`` selects."""
        parts = (self.rows[keep], self.x[keep], self.z[keep], self.value[keep], self.queries[keep])
        return Climbers(*parts, self.goal.select(keep), self.draws.select(keep))


@dataclass(frozen=True, kw_only=True)
class ScoreSearch(QueryAttack):
    """Hill climbing by random proposals: one proposal a sample a round, all samples at once, kept where it is better.

    A subclass states ``first(x, draws)``, the points to start from, ``plan(at, step)``, which prepares ``BLOCK`` rounds
    at once from random numbers, and ``propose(at, plan)``, the next candidates. A sample leaves the batch at the first
    point that meets the goal; a proposal that changes nothing is not asked.
    """

    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.SCORE
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return OBJECTIVES["margin" if isinstance(goal, Untargeted) else "ce"](logits, goal)

    def first(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        """The points that the search starts from."""
        raise TypeError(f"{type(self).__name__} states no start")

    def plan(self, at: Climbers, step: int) -> tuple[Tensor, ...]:
        """What rounds ``step`` to ``step + BLOCK`` need, each tensor (n, BLOCK, ...)."""
        raise TypeError(f"{type(self).__name__} states no plan")

    def propose(self, at: Climbers, plan: tuple[Tensor, ...], step: int) -> Float[Tensor, "n ..."]:
        """The candidates of round ``step``, in the ball and the bounds; ``plan`` holds that round's (n, ...)."""
        raise TypeError(f"{type(self).__name__} states no proposal")

    @torch.no_grad()
    def search(
        self, model: Any, x: Tensor, goal: Goal, *, seed: int, index: Tensor, start: Tensor | None = None, **_: Tensor
    ) -> AttackResult:
        oracle = model if isinstance(model, Oracle) else Oracle(model)
        require(oracle.access, self.access, type(self).__name__)
        n, nothing = len(x), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        found = AttackResult(x.clone(), nothing > 0, x.new_zeros(n), nothing.clone(), nothing)
        # NaN differs from every point, and minus infinity is below every value: what is asked first is moved to.
        rows, nowhere, low = torch.arange(n, device=x.device), torch.full_like(x, math.nan), x.new_full((n,), -math.inf)
        at = Climbers(rows, x, nowhere, low, nothing.clone(), goal, Draws(seed, type(self).__name__, index))
        at = self._ask(oracle, at, x, found, -2)
        if len(at.rows):
            at.value.fill_(-math.inf)
            at = self._ask(oracle, at, self.first(at.x, at.draws), found, -1)
            self._climb(oracle, at, found)
        distance = self.measure(found.x_adv - x)
        rows = torch.stack((found.queries, distance), 1)[:, None].double().cpu()
        trace = tuple(row if met else row[:0] for row, met in zip(rows, found.success.tolist(), strict=True))
        return AttackResult(found.x_adv, found.success, distance, found.queries, found.gradients, trace)

    def _climb(self, oracle: Oracle, at: Climbers, found: AttackResult) -> None:
        plan: tuple[Tensor, ...] = ()
        for step in range(self.budget):
            if not len(at.rows):
                return
            if step % BLOCK == 0:
                plan = self.plan(at, step)
            proposed = self.propose(at, tuple(t[:, step % BLOCK] for t in plan), step)
            before = at.rows
            at = self._ask(oracle, at, proposed, found, step)
            if len(at.rows) < len(before):
                stay = torch.isin(before, at.rows, assume_unique=True)
                plan = tuple(t[stay] for t in plan)
        found.x_adv[at.rows], found.queries[at.rows] = at.z, at.queries

    def _ask(self, oracle: Oracle, at: Climbers, z: Tensor, found: AttackResult, step: int) -> Climbers:
        """Ask about ``z`` where it is new and move there where it is better; gives the samples that go on."""
        new = (z != at.z).flatten(1).any(1)
        some = None if new.all() else new.nonzero()[:, 0]
        asked, goal = (z, at.goal) if some is None else (z[some], at.goal.select(some))
        if not len(asked):
            return at
        outputs = oracle(asked)
        if step % BLOCK <= 0 or step < 0:
            check_outputs(type(self).__name__, outputs, goal)
        value, met = self.objective(outputs, goal).to(at.value), goal.met(outputs)
        if some is not None:
            value, met = at.value.index_copy(0, some, value), torch.zeros_like(new).index_copy(0, some, met)
        better = met | (value > at.value)
        at.z, at.value = torch.where(wide(better, z), z, at.z), torch.where(better, value, at.value)
        at.queries += new
        # No sample has spent more than one query a round, and two before the first.
        gone = met | (at.queries >= self.budget) if step + 3 >= self.budget else met
        if not gone.any():
            return at
        rows = at.rows[gone]
        found.x_adv[rows], found.success[rows], found.queries[rows] = at.z[gone], met[gone], at.queries[gone]
        return at.select(~gone)
