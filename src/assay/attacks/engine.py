"""The gradient engine: objective x ball x step rule x start x restarts, for attacks that stay in a ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.balls import Ball, Linf
from assay.attacks.base import OBJECTIVES, Attack, AttackResult, Goal, Model, Untargeted, check_outputs
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import Draws
from assay.subject.access import Access

Memory = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Steps of projected ascent. A subclass states what differs: the objective, the direction, the length, the start.

    ``step_size`` is the length of a step as a fraction of eps (None: 2.5 / steps, as Madry et al. use it).
    ``restarts`` after the first run only on samples that still hold. With ``early_stop`` a sample leaves the batch at
    the first point that meets the goal; without it every sample takes all steps and its last point counts (of the
    restart with the highest objective). ``loss`` is "ce", "dlr" or "margin".
    """

    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.GRADIENT
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    ball: Ball = Linf(8 / 255)
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: Literal["ce", "dlr", "margin"] = "ce"
    early_stop: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, Ball):
            self.refuse("ball", repr(self.ball), "Linf(eps), L2(eps) or L1(eps)")
        if self.steps < 0 or self.restarts < 1:
            self.refuse("steps, restarts", (self.steps, self.restarts), "steps >= 0 and restarts >= 1")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            self.refuse("step_size", self.step_size, "a fraction of eps above 0")
        if self.loss not in OBJECTIVES:
            raise unknown(f"loss of {type(self).__name__}", self.loss, OBJECTIVES)

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        """What is climbed, one value a sample."""
        return OBJECTIVES[self.loss](logits, goal)

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

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, seed: int, index: Tensor | None = None) -> Tensor:
        """As Attack; where nothing depends on whether the goal was met, the last forward pass is saved."""
        if self.early_stop or self.restarts > 1 or not isinstance(model, nn.Module):
            return super().__call__(model, x, y, seed=seed, index=index)
        where = type(self).__name__
        check_inputs(where, x, y, self.bounds)
        index = torch.arange(len(x)) if index is None else index
        check_labels(f"{where}: index", index, len(x))
        with evaluating(model):
            device = device_of(model)
            inputs, draws = x.detach().to(device), Draws(seed, f"{where}/0", index.to(device))
            climb = Climb(self, model, inputs, Untargeted(y.to(device)), draws)
            climb.run(verify=False)
        return climb.x_adv.to(x.device)

    def search(self, model: nn.Module, x: Tensor, goal: Goal, *, seed: int, index: Tensor, **_: Tensor) -> AttackResult:
        if not isinstance(model, nn.Module) and self.access >= Access.GRADIENT:
            raise InputError(f"{type(self).__name__}: the model is {type(model).__name__}; expected a torch module")
        x_adv, success = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        best = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
        queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        gradients = torch.zeros_like(queries)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            if not len(rows):
                break
            draws = Draws(seed, f"{type(self).__name__}/{restart}", index[rows])
            climb = Climb(self, model, x[rows], goal.select(rows), draws)
            climb.run()
            queries[rows] += climb.queries
            gradients[rows] += climb.gradients
            gain = (climb.success & ~success[rows]) | ((climb.value > best[rows]) & (climb.success == success[rows]))
            won = rows[gain]
            x_adv[won], best[won], success[won] = climb.x_adv[gain], climb.value[gain].to(best), climb.success[gain]
            if self.early_stop:
                rows = rows[~climb.success]
        return AttackResult(x_adv, success, self.ball.norm(x_adv - x), queries, gradients)


class Climb:
    """One run of projected ascent on one batch.

    Each pass serves twice: it tells which samples meet the goal and gives the gradient of the next step.
    """

    def __init__(self, attack: GradientAttack, model: nn.Module, x: Tensor, goal: Goal, draws: Draws) -> None:
        self.attack, self.model, self.x, self.goal, self.draws = attack, model, x, goal, draws
        n, device = len(x), x.device
        self.x_adv = torch.empty_like(x)
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.value = torch.full((n,), -math.inf, dtype=x.dtype, device=device)
        self.queries = torch.zeros(n, dtype=torch.int64, device=device)
        self.gradients = torch.zeros_like(self.queries)

    def run(self, *, verify: bool = True) -> None:
        """All steps; ``verify=False`` leaves out the pass that measures the last point."""
        attack, x, goal = self.attack, self.x, self.goal
        rows = torch.arange(len(x), device=x.device)
        memory: Memory = {}
        z = attack.start(x, self.draws)
        z = attack.ball.project(z.add_(x), x, attack.bounds)
        for step in range(attack.steps + verify):
            last = step == attack.steps
            z.requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                logits = self.model(z)
                if step == 0:
                    check_outputs(type(attack).__name__, logits, goal)
                value = attack.objective(logits, goal)
            self.queries[rows] += 1
            met = goal.met(logits.detach())
            if last:
                self._keep(rows, z.detach(), value, met)
                return
            out = met if attack.early_stop else torch.zeros_like(met)
            if out.any():
                self._keep(rows[out], z.detach()[out], value.detach()[out], met[out])
                if out.all():
                    return
            (grad,) = torch.autograd.grad(value, z, torch.ones_like(value))
            self.gradients[rows] += 1
            z = z.detach()
            if out.any():
                keep = ~out
                rows, z, grad, x, goal = rows[keep], z[keep], grad[keep], x[keep], goal.select(keep)
                memory = {name: tensor[keep] for name, tensor in memory.items()}
            z = z + attack.length(step) * attack.direction(grad, z, memory, step)
            z = attack.ball.project(z, x, attack.bounds)
        self.x_adv[rows] = z

    def _keep(self, rows: Tensor, z: Tensor, value: Tensor, met: Tensor) -> None:
        self.x_adv[rows], self.value[rows], self.success[rows] = z, value.to(self.value), met
