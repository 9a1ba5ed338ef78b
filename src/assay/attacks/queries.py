"""The query engine: searches that only ask are ask/tell generators, one per image, stepped in lock-step.

A search is a generator over a ``Probe``: it writes ``met, value = yield from probe.ask(candidates)``. The engine joins
the candidates of all searches into one batch, asks the oracle once, and tells each search its own answers. What a
search does therefore depends on its own answers and its own random stream, never on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.base import Attack, AttackResult, Goal, check_outputs
from assay.runtime.errors import AssayError
from assay.runtime.random import Draws
from assay.subject.access import Access, Oracle, require

Answer = tuple[Bool[Tensor, " m"], Float[Tensor, " m"]]
Search = Generator[Tensor, Answer, None]
Asking = Generator[Tensor, Answer, Answer]
Blending = Generator[Tensor, Answer, Tensor]


class Spent(AssayError):
    """A sample's budget does not cover what its search asks next; the engine ends that search."""


class Probe:
    """One image under search: its budget, its random stream, and the best point that met the goal so far.

    The best point is the nearest to ``x`` under ``norm``; ``last`` is where a search in a ball stands until it has one.
    ``value`` in an answer is the attack's objective where the attack uses scores, NaN where it uses decisions.
    """

    def __init__(
        self, x: Tensor, draws: Draws, budget: int, norm: Callable[[Tensor], Tensor], given: Tensor | None = None
    ) -> None:
        self.x, self.draws, self.budget, self.norm, self.given = x, draws, budget, norm, given
        self.queries, self.distance, self.best, self.last = 0, math.inf, x, x
        self.trace: list[tuple[int, float]] = []

    @property
    def left(self) -> int:
        """Queries that the budget still covers."""
        return self.budget - self.queries

    def ask(self, z: Float[Tensor, "m ..."], *, keep: bool = True) -> Asking:
        """Put candidates to the oracle; gives (met (m,) bool, value (m,)).

        ``keep=False`` for points that only inform, such as probes beyond the bounds: none of them becomes the best.
        """
        if len(z) > self.left:
            raise Spent(f"{self.left} queries are left, {len(z)} more asked")
        met, value = yield z
        self.queries += len(z)
        if keep and met.any():
            distance = self.norm(z[met] - self.x)
            nearest = int(distance.argmin())
            if float(distance[nearest]) < self.distance:
                self.distance, self.best = float(distance[nearest]), z[met][nearest]
                self.trace.append((self.queries, self.distance))
        return met, value


def bisect(
    probe: Probe,
    outside: Tensor,
    blend: Callable[[Tensor, Tensor, float], Tensor],
    tolerance: float,
    scale: float = 1.0,
) -> Blending:
    """The nearest point to ``probe.x`` on the path blend(x, outside, t), t from 0 to ``scale``, that meets the goal.

    ``outside`` (...) meets it at t = scale; the answer is within ``tolerance`` of the boundary in t. All images bisect
    in lock-step, one query each a round.
    """
    low, high, point = 0.0, scale, outside
    while high - low > tolerance:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        z = blend(probe.x, outside, middle)
        met, _ = yield from probe.ask(z[None])
        if bool(met[0]):
            high, point = middle, z
        else:
            low = middle
    return point


def segment(x: Tensor, outside: Tensor, t: float) -> Tensor:
    """The point at share ``t`` of the straight way from x to ``outside``: a blend for ``bisect``."""
    return x + t * (outside - x)


def starting_point(probe: Probe, bounds: tuple[float, float], tries: int = 50, group: int = 5) -> Blending:
    """A point that meets the goal: the given one, else uniform noise (Brendel et al., 2018, arXiv:1712.04248).

    Raises Spent where neither does.
    """
    if probe.given is not None:
        met, _ = yield from probe.ask(probe.given[None])
        if bool(met[0]):
            return probe.given
    for _ in range(tries // group):
        noise = probe.draws.uniform(group, *probe.x.shape)[0].to(probe.x)
        noise = bounds[0] + (bounds[1] - bounds[0]) * noise
        met, _ = yield from probe.ask(noise)
        if met.any():
            return noise[int(met.int().argmax())]
    raise Spent(f"none of {tries} starting points met the goal")


@dataclass(frozen=True, kw_only=True)
class QueryAttack(Attack):
    """An attack that only asks. A subclass states ``explore(probe, goal)``, the search on one image, and its ``norm``.

    ``budget`` is the number of queries a sample may spend. The model may be a torch module or an Oracle; the
    oracle's own budget is for all samples together and raises BudgetError where it is spent.
    """

    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.DECISION
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "minimum-norm"

    budget: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < 1:
            self.refuse("budget", self.budget, "at least 1 query a sample")

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        """The value told to the search with each answer, where scores are granted."""
        return goal.margin(logits)

    def explore(self, probe: Probe, goal: Goal) -> Search:
        """The search on one image."""
        raise TypeError(f"{type(self).__name__} states no search")

    def search(
        self, model: Any, x: Tensor, goal: Goal, *, seed: int, index: Tensor, start: Tensor | None = None, **_: Tensor
    ) -> AttackResult:
        oracle = model if isinstance(model, Oracle) else Oracle(model)
        require(oracle.access, self.access, type(self).__name__)
        draws = Draws(seed, type(self).__name__, index)
        rows = [slice(i, i + 1) for i in range(len(x))]
        probes = [
            Probe(
                x[i],
                draws.select(index.new_tensor([i])),
                self.budget,
                self.measure,
                None if start is None else start[i],
            )
            for i, r in enumerate(rows)
        ]
        run_searches(
            self, oracle, probes, [self.explore(p, goal.select(r)) for p, r in zip(probes, rows, strict=True)], goal
        )
        return self.outcome(probes, x)

    def outcome(self, probes: list[Probe], x: Tensor) -> AttackResult:
        """The best points found. Where none was: where the search in the ball ended, or x at distance infinity."""
        success = torch.tensor([math.isfinite(p.distance) for p in probes], device=x.device)
        queries = torch.tensor([p.queries for p in probes], device=x.device)
        trace = tuple(torch.tensor(p.trace, dtype=torch.float64).reshape(-1, 2) for p in probes)
        x_adv = torch.stack([p.best if math.isfinite(p.distance) else p.last for p in probes])
        distance = self.measure(x_adv - x)
        if self.guarantee == "minimum-norm":
            distance = distance.masked_fill(~success, math.inf)
        return AttackResult(x_adv, success, distance, queries, torch.zeros_like(queries), trace)


def run_searches(
    attack: QueryAttack, oracle: Oracle, probes: list[Probe], searches: list[Search], goal: Goal, chunk: int = 1024
) -> None:
    """Step all searches in lock-step until each has ended or spent its budget."""
    asked: dict[int, Tensor] = {}

    def advance(i: int, answer: Answer | None) -> None:
        try:
            asked[i] = next(searches[i]) if answer is None else searches[i].send(answer)
        except (StopIteration, Spent):
            asked.pop(i, None)

    for i in range(len(searches)):
        advance(i, None)
    while asked:
        order = list(asked)
        sizes = [len(asked[i]) for i in order]
        candidates = torch.cat([asked[i] for i in order])
        owner = torch.tensor(order, device=candidates.device).repeat_interleave(
            torch.tensor(sizes, device=candidates.device)
        )
        answers = [
            _tell(attack, oracle, candidates[k : k + chunk], goal.select(owner[k : k + chunk]))
            for k in range(0, len(candidates), chunk)
        ]
        met, value = (torch.cat(column).split(sizes) for column in zip(*answers, strict=True))
        for i, m, v in zip(order, met, value, strict=True):
            advance(i, (m, v))


def _tell(attack: QueryAttack, oracle: Oracle, z: Tensor, goal: Goal) -> Answer:
    outputs = oracle(z)
    check_outputs(type(attack).__name__, outputs, goal)
    if outputs.dim() == 2 and attack.access == Access.DECISION:
        outputs = outputs.argmax(1)
    if outputs.dim() == 1:
        return goal.met(outputs), torch.full((len(z),), math.nan, device=z.device)
    return goal.met(outputs), attack.objective(outputs, goal)
