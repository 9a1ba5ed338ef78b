"""The batched form of the query engine: random searches whose proposals are tensors over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.base import OBJECTIVES, AttackResult, Goal, Untargeted, check_outputs
from assay.attacks.queries import QueryAttack
from assay.runtime.random import Draws
from assay.subject.access import Access, Oracle, require

BLOCK = 64


@dataclass
class Climbers:
    """The samples that a search is still at: their ``rows`` in the batch, inputs ``x``, points ``z``, their
    ``value``, and what they are after and draw from.
    """

    rows: Tensor
    x: Tensor
    z: Tensor
    value: Tensor
    goal: Goal
    draws: Draws

    def select(self, keep: Tensor) -> Climbers:
        """The samples that ``keep`` selects."""
        parts = (self.rows[keep], self.x[keep], self.z[keep], self.value[keep])
        return Climbers(*parts, self.goal.select(keep), self.draws.select(keep))


@dataclass(frozen=True, kw_only=True)
class ScoreSearch(QueryAttack):
    """Hill climbing by random proposals: one proposal a sample a round, all samples at once, kept where it is better.

    A subclass states ``first(x, draws)``, the points to start from, and ``propose(at, numbers, step)``, the next
    candidates; ``numbers(draws)`` draws the random numbers of ``BLOCK`` rounds. A sample leaves the batch at the first
    point that meets the goal; a proposal that changes nothing is not asked.
    """

    access: ClassVar[Access] = Access.SCORE
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return OBJECTIVES["margin" if isinstance(goal, Untargeted) else "ce"](logits, goal)

    def first(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        """The points that the search starts from."""
        raise TypeError(f"{type(self).__name__} states no start")

    def numbers(self, draws: Draws) -> tuple[Tensor, ...]:
        """Random numbers of ``BLOCK`` rounds, each tensor (n, BLOCK, ...)."""
        raise TypeError(f"{type(self).__name__} states no random numbers")

    def propose(self, at: Climbers, numbers: tuple[Tensor, ...], step: int) -> Float[Tensor, "n ..."]:
        """The candidates of round ``step``, in the ball and the bounds; ``numbers`` are (n, ...)."""
        raise TypeError(f"{type(self).__name__} states no proposal")

    @torch.no_grad()
    def search(self, model: Any, x: Tensor, goal: Goal, *, seed: int, index: Tensor, **_: Tensor) -> AttackResult:
        oracle = model if isinstance(model, Oracle) else Oracle(model)
        require(oracle.access, self.access, type(self).__name__)
        n, nothing = len(x), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        found = AttackResult(x.clone(), nothing > 0, x.new_zeros(n), nothing.clone(), nothing)
        # NaN differs from every point, and minus infinity is below every value: what is asked first is moved to.
        rows, nowhere = torch.arange(n, device=x.device), torch.full_like(x, math.nan)
        at = Climbers(rows, x, nowhere, x.new_full((n,), -math.inf), goal, Draws(seed, type(self).__name__, index))
        at = self._ask(oracle, at, x, found)
        if len(at.rows):
            at.value.fill_(-math.inf)
            at = self._ask(oracle, at, self.first(at.x, at.draws), found)
            self._climb(oracle, at, found)
        distance = self.measure(found.x_adv - x)
        rows = torch.stack((found.queries, distance), 1)[:, None].double().cpu()
        trace = tuple(row if met else row[:0] for row, met in zip(rows, found.success.tolist(), strict=True))
        return AttackResult(found.x_adv, found.success, distance, found.queries, found.gradients, trace)

    def _climb(self, oracle: Oracle, at: Climbers, found: AttackResult) -> None:
        numbers: tuple[Tensor, ...] = ()
        for step in range(self.budget):
            if not len(at.rows):
                return
            if step % BLOCK == 0:
                numbers = self.numbers(at.draws)
            proposed = self.propose(at, tuple(t[:, step % BLOCK] for t in numbers), step)
            before = at.rows
            at = self._ask(oracle, at, proposed, found)
            if len(at.rows) < len(before):
                stay = torch.isin(before, at.rows, assume_unique=True)
                numbers = tuple(t[stay] for t in numbers)
        found.x_adv[at.rows] = at.z

    def _ask(self, oracle: Oracle, at: Climbers, z: Float[Tensor, "n ..."], found: AttackResult) -> Climbers:
        """Ask about ``z`` where it is new and move there where it is better; gives the samples that go on."""
        new = (z != at.z).flatten(1).any(1).nonzero()[:, 0]
        if not len(new):
            return at
        goal = at.goal.select(new)
        outputs = oracle(z[new])
        check_outputs(type(self).__name__, outputs, goal)
        value, met = self.objective(outputs, goal).to(at.value), goal.met(outputs)
        better = met | (value > at.value[new])
        at.z[new[better]], at.value[new[better]] = z[new[better]], value[better]
        found.queries[at.rows[new]] += 1
        gone = met | (found.queries[at.rows[new]] >= self.budget)
        if not gone.any():
            return at
        rows, leaving = at.rows[new[gone]], new[gone]
        found.x_adv[rows], found.success[rows] = at.z[leaving], met[gone]
        keep = torch.ones(len(at.rows), dtype=torch.bool, device=z.device)
        keep[leaving] = False
        return at.select(keep)
