"""The microbial genetic algorithm on many problems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import Draws

Fitness = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Evolved:
    """Where n populations of p individuals with d bits ended: ``population`` (n, p, d), ``values`` (n, p), the ``best``
    individual (n,) of each, whether it ``met`` the aim (n,), and the evaluations spent, ``queries`` (n,)."""

    population: Bool[Tensor, "n p d"]
    values: Float[Tensor, "n p"]
    best: Int[Tensor, " n"]
    met: Bool[Tensor, " n"]
    queries: Int[Tensor, " n"]


@dataclass
class _Colony:
    """The problems that go on: their rows, populations, values, and random streams."""

    rows: Tensor
    bits: Tensor
    values: Tensor
    draws: Draws

    def select(self, keep: Tensor) -> _Colony:
        return _Colony(self.rows[keep], self.bits[keep], self.values[keep], self.draws.select(keep))


@dataclass(frozen=True, kw_only=True)
class MicrobialGA:
    """Steady-state tournaments of two (Harvey, 2009, "The microbial genetic algorithm"; Abdukhamidov et al., 2023,
    arXiv:2307.06496, stage 2).

    A generation draws two individuals; the loser takes each bit of the winner with probability ``crossover``, then
    flips each with probability ``mutation``; the winner stays as it is. Only the loser is evaluated again: one query a
    generation, so that the best value never falls. ``budget`` bounds the queries, those of the first population
    included.
    """

    crossover: float = 0.7
    mutation: float = 0.001
    budget: int = 10_000

    def __post_init__(self) -> None:
        if not (0 <= self.crossover <= 1 and 0 <= self.mutation <= 1) or self.budget < 2:
            where = f"crossover={self.crossover}, mutation={self.mutation}, budget={self.budget}"
            raise InputError(f"MicrobialGA: {where}; expected rates in [0, 1] and budget >= 2")

    def first_wins(self, first: Float[Tensor, " n"], second: Float[Tensor, " n"], draws: Draws) -> Bool[Tensor, " n"]:
        """Which tournaments the first of two individuals wins, by their values."""
        return first >= second

    def breed(self, winner: Bool[Tensor, "n d"], loser: Bool[Tensor, "n d"], draws: Draws) -> Bool[Tensor, "n d"]:
        """What becomes of the loser."""
        chance = draws.uniform(2, winner.shape[1])
        return torch.where(chance[:, 0] < self.crossover, winner, loser) ^ (chance[:, 1] < self.mutation)

    def run(
        self,
        fitness: Fitness,
        init: Bool[Tensor, "n p d"],
        draws: Draws,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Evolved:
        """Evolve the populations ``init``, 2 <= p <= budget, until their aim is met or the budget is spent.

        ``fitness(rows, bits)`` gives for individuals (m, d) of the problems ``rows`` (m,) their values (m,), higher is
        better, and whether they meet the aim (m,). ``watch(rows, population)`` sees every generation of what goes on.
        Raises InputError for other populations.
        """
        if init.dim() != 3 or init.dtype != torch.bool or not 2 <= init.shape[1] <= self.budget or not init.numel():
            expected = f"bool (n, p, d) with 2 <= p <= {self.budget}"
            raise InputError(f"MicrobialGA: init is {init.dtype} {tuple(init.shape)}; expected {expected}")
        n, p, _ = init.shape
        rows = torch.arange(n, device=init.device)
        value, met = fitness(rows.repeat_interleave(p), init.flatten(0, 1))
        colony = _Colony(rows, init.clone(), value.view(n, p).clone(), draws)
        end = Evolved(
            init.clone(), colony.values.clone(), rows.clone(), met.view(n, p).any(1), torch.full_like(rows, p)
        )
        # What meets the aim counts as best, whatever its value.
        end.best.copy_((colony.values.masked_fill(~met.view(n, p) & end.met[:, None], -torch.inf)).argmax(1))
        colony = colony.select(~end.met)
        for generation in range(p, self.budget):
            if not len(colony.rows):
                return end
            if watch is not None:
                watch(colony.rows, colony.bits)
            colony = self._generation(fitness, colony, end, generation + 1)
        if watch is not None and len(colony.rows):
            watch(colony.rows, colony.bits)
        end.population[colony.rows], end.values[colony.rows] = colony.bits, colony.values
        end.best[colony.rows], end.queries[colony.rows] = colony.values.argmax(1), self.budget
        return end

    def _generation(self, fitness: Fitness, colony: _Colony, end: Evolved, queries: int) -> _Colony:
        """One tournament in every population; those that meet the aim are written to ``end`` and leave."""
        p, at = colony.bits.shape[1], torch.arange(len(colony.rows), device=colony.rows.device)
        pair = colony.draws.integers(p * (p - 1), 1)[:, 0]  # every ordered pair is as likely
        first = pair // (p - 1)
        second = (first + 1 + pair % (p - 1)) % p
        wins = self.first_wins(colony.values[at, first], colony.values[at, second], colony.draws)
        winner, loser = torch.where(wins, first, second), torch.where(wins, second, first)
        child = self.breed(colony.bits[at, winner], colony.bits[at, loser], colony.draws)
        value, met = fitness(colony.rows, child)
        colony.bits[at, loser], colony.values[at, loser] = child, value.to(colony.values)
        if not met.any():
            return colony
        rows = colony.rows[met]
        end.population[rows], end.values[rows], end.best[rows] = colony.bits[met], colony.values[met], loser[met]
        end.met[rows], end.queries[rows] = True, queries
        return colony.select(~met)
