"""QuScore: a surrogate's gradients make the first population, a microbial genetic algorithm asks for the rest."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Linf
from assay.attacks.base import AttackResult, Goal, Targeted, Toward, Untargeted, check_outputs
from assay.attacks.interpretation_preserving import InterpretationPreservingMIFGSM
from assay.attacks.microbial import MicrobialGA
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.queries import QueryAttack
from assay.runtime.errors import unknown
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws
from assay.runtime.saliency import SALIENCY, Saliency
from assay.subject.access import Access, Oracle, require

RESTARTS = 10  # of the first surrogate step, where the surrogates are not fooled


@dataclass(frozen=True, kw_only=True)
class QuScore(QueryAttack):
    """Scores and surrogates against a classifier whose attribution map is watched (Abdukhamidov et al., 2023,
    arXiv:2307.06496).

    Stage 1, on the ``surrogates`` (losses averaged): ``pop`` times from a random point of the ball, MI-FGSM until they
    are fooled (at most 10 tries), which gives a class t; from there ``surrogate_steps`` steps of ``step`` toward t with
    InterpretationPreservingMIFGSM (``lam_int``, ``attribution``, ``detach_map``: see there). Only the signs of the
    displacement are kept: individual b stands for the image x + eps (2 b - 1), clipped. Stage 2: a MicrobialGA on
    these bits with cross-entropy as fitness (of y upwards, of a target downwards), until the goal is met or ``budget``
    queries are spent. Without surrogates it starts from random bits. Its ball is l-infinity. Where nothing met the
    goal, the fittest individual is given. x is images (n, c, h, w) where there are surrogates. Options: QueryAttack.
    """

    access: ClassVar[Access] = Access.SCORE
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    ball: Linf = Linf(8 / 255)
    surrogates: tuple[nn.Module, ...] = ()
    pop: int = 5
    crossover: float = 0.7
    mutation: float = 0.001
    budget: int = 10_000
    surrogate_steps: int = 10
    step: float = 0.01
    lam_int: float = 1e-3
    attribution: str | Saliency = "grad"
    detach_map: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, Linf) or self.ball.eps <= 0:
            self.refuse("ball", repr(self.ball), "Linf(eps) with eps > 0")
        if not 2 <= self.pop <= self.budget:
            self.refuse("pop", self.pop, f"2 individuals to the budget, {self.budget}")
        if self.surrogate_steps < 1 or not self.step > 0:
            self.refuse("surrogate_steps, step", (self.surrogate_steps, self.step), "steps >= 1 and step > 0")
        if not callable(self.attribution) and self.attribution not in SALIENCY:
            raise unknown("attribution of QuScore", str(self.attribution), SALIENCY)
        self.evolution()

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta)

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        """Cross-entropy of the class to leave, or minus that of the class to reach."""
        if isinstance(goal, Untargeted):
            return F.cross_entropy(logits, goal.y, reduction="none")
        return -F.cross_entropy(logits, goal.t, reduction="none") if isinstance(goal, Targeted) else goal.margin(logits)

    def evolution(self) -> MicrobialGA:
        """The algorithm of stage 2."""
        return MicrobialGA(crossover=self.crossover, mutation=self.mutation, budget=self.budget)

    def express(self, bits: Bool[Tensor, "n d"], x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The images that individuals stand for."""
        return (x + self.ball.eps * (2 * bits.to(x) - 1).view_as(x)).clamp_(*self.bounds)

    def encode(self, delta: Float[Tensor, "n p ..."]) -> Bool[Tensor, "n p d"]:
        """The individuals of displacements: which of their entries are above 0."""
        return delta.flatten(2) > 0

    def populate(
        self, x: Float[Tensor, "n ..."], goal: Goal, seed: int, index: Tensor
    ) -> tuple[Bool[Tensor, "n p d"], Int[Tensor, " n"]]:
        """The first individuals, and the backward passes on the surrogates that they took."""
        if not self.surrogates:
            bits = Draws(seed, "QuScore/bits", index).integers(2, self.pop, x[0].numel()).bool()
            return bits, torch.zeros_like(index)
        rows = torch.arange(len(x), device=x.device).repeat_interleave(self.pop)
        names = index.repeat_interleave(self.pop) * self.pop + torch.arange(len(rows), device=x.device) % self.pop
        with ExitStack() as stack, torch.enable_grad():
            for model in self.surrogates:
                stack.enter_context(evaluating(model))
            found, passes = self._fool(x[rows], goal.select(rows), seed, names)
        return self.encode((found - x[rows]).view(len(x), self.pop, *x.shape[1:])), passes.view(-1, self.pop).sum(1)

    def _fool(self, x: Tensor, goal: Goal, seed: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 1: fool the surrogates, then go on to the class found with the map of the first kept."""
        surrogate = _LossMean(self.surrogates)
        plan: dict[str, Any] = {"ball": self.ball, "bounds": self.bounds, "steps": self.surrogate_steps}
        plan["step_size"] = self.step / self.ball.eps
        first = _UntilFooled(**plan, random_start=True, restarts=RESTARTS).search(
            surrogate, x, goal, seed=seed, index=index
        )
        toward = goal
        if isinstance(goal, Untargeted):
            with torch.no_grad():
                scores = surrogate(first.x_adv).scatter(1, goal.y[:, None], -torch.inf)
            toward = Toward(goal.y, scores.argmax(1))
        how = self.attribution if callable(self.attribution) else SALIENCY[self.attribution]
        second = _Preserving(
            **plan,
            lam_int=self.lam_int,
            attribution=lambda _mean, z, y: how(self.surrogates[0], z, y),
            detach_map=self.detach_map,
        ).search(surrogate, x, toward, seed=seed, index=index, start=first.x_adv)
        return second.x_adv, first.gradients + second.gradients

    @torch.no_grad()
    def search(
        self, model: Any, x: Tensor, goal: Goal, *, seed: int, index: Tensor, start: Tensor | None = None, **_: Tensor
    ) -> AttackResult:
        oracle = model if isinstance(model, Oracle) else Oracle(model)
        require(oracle.access, self.access, type(self).__name__)
        init, passes = self.populate(x, goal, seed, index)
        fresh = True

        def fitness(rows: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal fresh
            outputs, aims = oracle(self.express(bits, x[rows])), goal.select(rows)
            if fresh:
                check_outputs(type(self).__name__, outputs, aims)
                fresh = False
            return self.objective(outputs, aims), aims.met(outputs)

        end = self.evolution().run(fitness, init, Draws(seed, "QuScore", index))
        x_adv = self.express(end.population[torch.arange(len(x), device=x.device), end.best], x)
        distance = self.measure(x_adv - x)
        rows = torch.stack((end.queries, distance), 1)[:, None].double().cpu()
        trace = tuple(row if met else row[:0] for row, met in zip(rows, end.met.tolist(), strict=True))
        return AttackResult(x_adv, end.met, distance, end.queries, passes, trace)


class _LossMean(nn.Module):
    """Log-probabilities averaged over models: minus an entry is the mean of the models' cross-entropies."""

    def __init__(self, models: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.log_softmax(m(x), 1) for m in self.models]).mean(0)


class _OnLossMean:
    """Objectives on averaged log-probabilities, which do not sum to 1: they are not normalised again."""

    def objective(self, logits: Tensor, goal: Goal) -> Tensor:
        if isinstance(goal, Untargeted):
            return F.nll_loss(logits, goal.y, reduction="none")
        return -F.nll_loss(logits, getattr(goal, "t", goal.labels()), reduction="none")


@dataclass(frozen=True, kw_only=True)
class _UntilFooled(_OnLossMean, MIFGSM):
    """MI-FGSM that starts again where all of its steps did not fool the model."""

    def resolved(self, value: Tensor, success: Tensor) -> Tensor:
        return success


@dataclass(frozen=True, kw_only=True)
class _Preserving(_OnLossMean, InterpretationPreservingMIFGSM):
    """The second step of stage 1."""
