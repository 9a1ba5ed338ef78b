"""The gradient engine: objective x step rule x start x restarts x targets, for attacks that follow gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Ball, Linf
from assay.attacks.base import (
    OBJECTIVES,
    Attack,
    AttackResult,
    Goal,
    Model,
    Untargeted,
    check_outputs,
    likeliest,
)
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating, traceable
from assay.runtime.random import Draws
from assay.subject.access import Access

Memory = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class IterativeAttack(Attack):
    """Steps along gradients. A subclass states where a run begins, how it moves, and which of its points counts.

    ``restarts`` after the first run only on samples that are not yet ``resolved``. With ``targets`` > 0 each run is as
    many runs side by side, one toward each of the likeliest wrong classes (Gowal et al., 2019, arXiv:1910.09338), for
    untargeted goals; a sample is resolved by whichever is first. ``eot`` passes are averaged for each gradient (Athalye
    et al., 2018, arXiv:1802.00420), for models that are random; the goal then counts as met where more than half of
    the passes meet it. ``loss`` is "ce", "dlr" or "margin".
    """

    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.GRADIENT
    views: ClassVar[bool] = False

    steps: int = 40
    restarts: int = 1
    targets: int = 0
    eot: int = 1
    loss: Literal["ce", "dlr", "margin"] = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or self.restarts < 1:
            self.refuse("steps, restarts", (self.steps, self.restarts), "steps >= 0 and restarts >= 1")
        if self.targets < 0 or self.eot < 1:
            self.refuse("targets, eot", (self.targets, self.eot), "targets >= 0 and eot >= 1")
        if self.loss not in OBJECTIVES:
            raise unknown(f"loss of {type(self).__name__}", self.loss, OBJECTIVES)

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        """What is climbed, one value a sample."""
        return OBJECTIVES[self.loss](logits, goal)

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        """The objective (n,), its gradient at ``z``, and how many backward passes that took.

        ``level`` is the objective of ``logits``, both functions of ``z``.
        """
        (grad,) = torch.autograd.grad(level, z, torch.ones_like(level))
        return level.detach(), grad, 1

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        """The points that a run starts from."""
        raise TypeError(f"{type(self).__name__} states no start")

    def view(self, run: Climb) -> Float[Tensor, "n ..."]:
        """What the gradient is taken of, a function of ``run.z``; an attack that states it sets ``views``."""
        return run.z

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        """Record what counts of the points just seen, and tell which samples leave the batch."""
        raise TypeError(f"{type(self).__name__} states no rule")

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        """The next points, from ``run.z``, ``run.value`` and ``run.grad``."""
        raise TypeError(f"{type(self).__name__} states no step")

    def resolved(self, value: Float[Tensor, " n"], success: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which samples need no further run."""
        raise TypeError(f"{type(self).__name__} states no end")

    def aim(self, model: nn.Module, x: Tensor, goal: Goal) -> tuple[Goal, int]:
        """The goals of the runs side by side, sample by sample, and how many each sample has."""
        if not self.targets:
            return goal, 1
        if not isinstance(goal, Untargeted):
            where = f"{type(self).__name__}: targets is {self.targets}"
            raise InputError(f"{where}; expected 0 where the goal is {type(goal).__name__}")
        toward = likeliest(type(self).__name__, model, x, goal, self.targets)
        return toward, len(toward.t) // len(x)

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        goal: Goal,
        *,
        seed: int,
        index: Tensor,
        start: Tensor | None = None,
        **_: Tensor,
    ) -> AttackResult:
        if not isinstance(model, nn.Module) and self.access >= Access.GRADIENT:
            raise InputError(f"{type(self).__name__}: the model is {type(model).__name__}; expected a torch module")
        x_adv, success = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        best = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
        queries = torch.full((len(x),), int(self.targets > 0), dtype=torch.int64, device=x.device)
        gradients = torch.zeros_like(queries)
        rows = torch.arange(len(x), device=x.device)
        goals, k = self.aim(model, x, goal)
        for number in range(self.restarts):
            if not len(rows):
                break
            draws = Draws(seed, f"{type(self).__name__}/{number}", index[rows])
            runs = (rows[:, None] * k + torch.arange(k, device=x.device)).flatten() if k > 1 else rows
            given = start[rows] if start is not None and number == 0 else None
            climb = Climb(self, model, x[rows], goals.select(runs), draws, best[rows], k, given)
            climb.run()
            queries[rows] += climb.queries.view(-1, k).sum(1)
            gradients[rows] += climb.gradients.view(-1, k).sum(1)
            first = climb.best()
            hit, value = climb.success[first], climb.value[first].to(best)
            gain = (hit & ~success[rows]) | ((value > best[rows]) & (hit == success[rows]))
            won = rows[gain]
            x_adv[won], best[won], success[won] = climb.x_adv[first[gain]], value[gain], hit[gain]
            rows = rows[~self.resolved(best[rows], success[rows])]
        return AttackResult(x_adv, success, self._distance(x_adv - x, success), queries, gradients)

    def _batches(
        self,
        model: Model,
        x: Tensor,
        goal: Goal,
        seed: int,
        index: Tensor,
        size: int,
        start: Tensor | None,
        device: torch.device,
    ) -> AttackResult:
        """Batches as large with the runs side by side as without."""
        size = max(size // max(self.targets, 1), 1)
        return super()._batches(model, x, goal, seed, index, size, start, device)

    def _distance(self, delta: Tensor, success: Tensor) -> Tensor:
        distance = self.measure(delta)
        return distance.masked_fill(~success, math.inf) if self.guarantee == "minimum-norm" else distance


@dataclass(frozen=True, kw_only=True)
class GradientAttack(IterativeAttack):
    """Steps of projected ascent. A subclass states what differs: the objective, the direction, the length, the start.

    ``step_size`` is the length of a step as a fraction of eps (None: 2.5 / steps, as Madry et al. use it).
    The first run begins at points that are given as ``start``, brought into the ball, if there are any.
    With ``early_stop`` a sample leaves the batch at the first point that meets the goal; without it every sample takes
    all steps and its last point counts (of the restart with the highest objective). Further options: IterativeAttack.
    """

    contract: ClassVar[bool] = True
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    ball: Ball = Linf(8 / 255)
    step_size: float | None = None
    random_start: bool = True
    early_stop: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, Ball):
            self.refuse("ball", repr(self.ball), "Linf(eps), L2(eps) or L1(eps)")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            self.refuse("step_size", self.step_size, "a fraction of eps above 0")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta)

    def start(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        """The displacement that a run starts from."""
        return self.ball.draw(x, draws) if self.random_start else torch.zeros_like(x)

    def direction(
        self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], memory: Memory, step: int
    ) -> Float[Tensor, "n ..."]:
        """A step of norm 1. ``memory`` starts empty and keeps tensors with one row a sample from step to step."""
        return self.ball.ascent(grad, z, self.bounds)

    def length(self, step: int) -> float:
        """The length of ``step``, in the data's units."""
        fraction = 2.5 / max(self.steps, 1) if self.step_size is None else self.step_size
        return fraction * self.ball.eps

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        first = run.given.clone() if run.given is not None else self.start(run.x, run.draws).add_(run.x)
        return self.ball.project(first, run.x, self.bounds)

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        out = run.met if self.early_stop else torch.zeros_like(run.met)
        run.record(torch.ones_like(out) if run.last else out)
        return out

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        direction = self.direction(run.grad, run.z, run.memory, run.step)
        z = torch.add(run.z, direction, alpha=self.length(run.step))
        return self.ball.project(z, run.x, self.bounds)

    def resolved(self, value: Float[Tensor, " n"], success: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        return success if self.early_stop else torch.zeros_like(success)

    @property
    def _plain(self) -> bool:
        """Whether only the last point of a single run counts, whatever it does to the model."""
        plain = type(self).settle is GradientAttack.settle
        return plain and not self.early_stop and self.restarts == 1 and self.targets == 0

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, seed: int, index: Tensor | None = None) -> Tensor:
        """As Attack; where nothing depends on whether the goal was met, the last forward pass is saved."""
        if not self._plain or not isinstance(model, nn.Module):
            return super().__call__(model, x, y, seed=seed, index=index)
        where = type(self).__name__
        check_inputs(where, x, y, self.bounds)
        index = torch.arange(len(x)) if index is None else index
        check_labels(f"{where}: index", index, len(x))
        with traceable(where, model, x), evaluating(model):
            points = self.taken(x)
            rows = (slice(k, k + BATCH) for k in range(0, len(x), BATCH))
            return torch.cat(
                [self._last(model, points[r], Untargeted(y[r]), seed, index[r]).to(x.device) for r in rows]
            )

    def _last(self, model: nn.Module, x: Tensor, goal: Goal, seed: int, index: Tensor) -> Float[Tensor, "n ..."]:
        """The last points of the only run on one batch, on the model's device."""
        device = device_of(model)
        draws = Draws(seed, f"{type(self).__name__}/0", index.to(device))
        climb = Climb(self, model, x.to(device), goal.to(device), draws)
        climb.run(verify=False)
        return climb.x_adv


class Climb:
    """One run on one batch.

    Each pass serves twice: it tells which samples meet the goal and gives the gradient of the next step. Of the samples
    still in the batch, ``rows``, it holds the inputs ``x``, the ``goal``, the points ``z`` with their objective
    ``level``, its gradient ``grad`` and whether they ``met`` the goal, the random streams ``draws``, the best value
    ``found`` by earlier runs, the points ``given`` to begin at (of all samples), and ``memory``, in which an attack
    keeps tensors with one row a sample. ``x_adv``, ``value`` and ``success`` are what was recorded, of all samples.
    With runs ``side_by_side`` each counts as a sample.
    """

    def __init__(
        self,
        attack: IterativeAttack,
        model: nn.Module,
        x: Tensor,
        goal: Goal,
        draws: Draws,
        found: Tensor | None = None,
        side_by_side: int = 1,
        given: Tensor | None = None,
    ) -> None:
        found = x.new_full((len(x),), -math.inf) if found is None else found
        if side_by_side > 1:
            sample = torch.arange(len(x), device=x.device).repeat_interleave(side_by_side)
            x, draws, found = x[sample], draws.select(sample), found[sample]
            given = None if given is None else given[sample]
        self.attack, self.model, self.x, self.goal, self.draws, self.found = attack, model, x, goal, draws, found
        self.given = given
        n, device = len(x), x.device
        self.rows, self.step, self.last, self.side_by_side = torch.arange(n, device=device), 0, False, side_by_side
        self.memory: Memory = {}
        self.x_adv = x.clone()
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.value = torch.full((n,), -math.inf, dtype=x.dtype, device=device)
        self.queries = torch.zeros(n, dtype=torch.int64, device=device)
        self.gradients = torch.zeros_like(self.queries)
        self.z = self.grad = x
        self.met, self.level = self.success, self.value

    def run(self, *, verify: bool = True) -> None:
        """All steps; ``verify=False`` leaves out the pass that measures the last points."""
        attack = self.attack
        self.z = attack.begin(self)
        for self.step in range(attack.steps + verify):
            self.last = self.step == attack.steps
            earlier = self._pass()
            out = self._with_siblings(attack.settle(self))
            if self.last or out.all():
                return
            self._slope(earlier)
            if out.any():
                self._drop(~out)
            self.z = attack.move(self)
        self.x_adv[self.rows] = self.z

    def best(self) -> Int[Tensor, " m"]:
        """For each sample the row of its best run: one that met the goal, if any did, of the highest value."""
        success, value = self.success.view(-1, self.side_by_side), self.value.view(-1, self.side_by_side)
        lost = ~success & success.any(1, keepdim=True)
        pick = value.masked_fill(lost, -math.inf).argmax(1)
        return torch.arange(len(pick), device=pick.device) * self.side_by_side + pick

    def _with_siblings(self, out: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """The runs that leave: with the first of a sample's runs side by side go the others."""
        if self.side_by_side == 1 or not out.any():
            return out
        return torch.isin(self.rows // self.side_by_side, self.rows[out] // self.side_by_side)

    def look(self, z: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
        """Put the batch at ``z``, see there whether the goals are met, and settle, without a gradient."""
        with torch.no_grad():
            logits = self.model(z)
        self.queries[self.rows] += 1
        self.z, self.met = z, self.goal.met(logits)
        self.attack.settle(self)
        return self.met

    def gradient(self, z: Float[Tensor, "n ..."], model: nn.Module | None = None) -> Float[Tensor, "n ..."]:
        """The objective's gradient at points ``z`` other than the present ones, or of another ``model``, counted."""
        model, total = self.model if model is None else model, torch.zeros_like(z)
        for _ in range(self.attack.eot):
            point = z.detach().requires_grad_()
            with torch.enable_grad():
                level = self.attack.objective(model(point), self.goal)
                total += torch.autograd.grad(level.sum(), point)[0]
        self.queries[self.rows] += self.attack.eot
        self.gradients[self.rows] += self.attack.eot
        return total / self.attack.eot

    def record(self, which: Bool[Tensor, " n"], value: Float[Tensor, " n"] | None = None) -> None:
        """Keep the present points of the samples that ``which`` selects, as good as ``value`` (None: their level)."""
        kept, level = which.nonzero()[:, 0], self.level if value is None else value
        rows = self.rows[kept]
        self.x_adv.index_copy_(0, rows, self.z.detach().index_select(0, kept))
        self.success[rows], self.value[rows] = self.met[kept], level.detach()[kept].to(self.value)

    def _pass(self) -> tuple[Tensor, int]:
        """All forward passes at ``z``; gives the sum of the gradients of all but the newest (see ``eot``)."""
        attack, total, passes = self.attack, torch.zeros(()), 0
        self.z = self.z.detach().requires_grad_(not self.last)
        levels, hits = [], []
        for number in range(attack.eot):
            with torch.set_grad_enabled(not self.last):
                logits = self.model(self.z if self.last else attack.view(self))
                if self.step == 0:
                    check_outputs(type(attack).__name__, logits, self.goal)
                levels.append(attack.objective(logits, self.goal))
                hits.append(self.goal.met(logits.detach()))
                if number < attack.eot - 1 and not self.last:
                    _, grad, k = attack.slope(levels[-1], logits, self.z, self.goal)
                    total, passes = total + grad, passes + k
                    levels[-1] = levels[-1].detach()
        self.queries[self.rows] += attack.eot
        self.level = levels[0] if attack.eot == 1 else torch.stack(levels).mean(0)
        self.met = hits[0] if attack.eot == 1 else torch.stack(hits).float().mean(0) > 0.5
        if attack.views and not self.last:
            with torch.no_grad():
                self.met = self.goal.met(self.model(self.z))
            self.queries[self.rows] += 1
        self.newest = (levels[-1], logits)
        return total, passes

    def _slope(self, earlier: tuple[Tensor, int]) -> None:
        with torch.enable_grad():
            level, grad, passes = self.attack.slope(*self.newest, self.z, self.goal)
        self.gradients[self.rows] += passes + earlier[1]
        if self.attack.eot == 1:
            self.level, self.grad = level, grad
        else:
            self.level, self.grad = self.level.detach(), (earlier[0] + grad) / self.attack.eot
        del self.newest
        self.z = self.z.detach()

    def _drop(self, stays: Bool[Tensor, " n"]) -> None:
        keep = stays.nonzero()[:, 0]
        for name in ("rows", "x", "z", "grad", "level", "met", "found"):
            setattr(self, name, getattr(self, name).index_select(0, keep))
        self.goal, self.draws = self.goal.select(keep), self.draws.select(keep)
        self.memory = {name: tensor.index_select(0, keep) for name, tensor in self.memory.items()}
