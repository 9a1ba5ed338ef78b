"""The penalty engine: minimum-norm attacks that weigh a penalty for missing an order of classes against distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.balls import L2
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Untargeted, check_outputs
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import Draws
from assay.subject.access import Access

Energy = Callable[[Tensor], tuple[Float[Tensor, " n"], Float[Tensor, "n c"]]]


def sample_targets(
    y: Int[Tensor, " n"], classes: int, k: int, *, seed: int, index: Int[Tensor, " n"] | None = None
) -> Int[Tensor, "n k"]:
    """``k`` distinct classes a sample, none of them ``y``, in an order drawn at random: the paper's targets."""
    check_labels("sample_targets", y, len(y), classes)
    if not 1 <= k <= classes - 1:
        raise InputError(f"sample_targets: k is {k}; expected 1 to {classes - 1}, one less than the classes")
    draws = Draws(seed, "targets", torch.arange(len(y), device=y.device) if index is None else index)
    return draws.uniform(classes).scatter(1, y[:, None], -1.0).topk(k, 1).indices


def ordered_targets(goal: Goal, logits: Float[Tensor, "n c"]) -> Int[Tensor, "n k"]:
    """The order that a goal asks for; an untargeted one is led to the likeliest class that is not ``y``."""
    if isinstance(goal, Ordered):
        return goal.targets
    if isinstance(goal, Targeted):
        return goal.t[:, None]
    if isinstance(goal, Untargeted):
        return logits.scatter(1, goal.y[:, None], -math.inf).argmax(1, keepdim=True)
    raise InputError(f"ordered attack: goal is {type(goal).__name__}; expected Ordered, Targeted or Untargeted")


@dataclass(frozen=True, kw_only=True)
class PenaltyAttack(Attack):
    """min over d of coef * penalty(x + d) + ||d||^2 by AdamW, the loop of Paniagua et al. (2023, arXiv:2312.11510).

    d starts at a normal draw of standard deviation ``spread`` times the bounds' width; after each of ``steps`` steps of
    rate ``lr`` x + d is clipped to the bounds, and after the first ``warmup`` the optimiser's state is dropped. Every
    new shortest d that meets the goal multiplies the sample's coef by ``decay``. coef is the middle of an interval that
    starts as [0, ``coef_upper``]; ``binary_search_steps`` such runs halve it, upwards where a run failed. The shortest
    d that met the goal counts (L2). A subclass states ``penalty``, or ``energy`` where it needs more than logits.
    """

    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.GRADIENT
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "minimum-norm"
    norm: ClassVar[str] = "l2"

    steps: int = 60
    lr: float = 2.2e-3
    coef_upper: float = 20.0
    binary_search_steps: int = 1
    warmup: int = 5
    decay: float = 0.75
    spread: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.binary_search_steps < 1 or self.warmup < 0:
            given = (self.steps, self.binary_search_steps, self.warmup)
            self.refuse("steps, binary_search_steps, warmup", given, ">= 1, >= 1 and >= 0")
        for field in ("lr", "coef_upper", "decay"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) > 0):
                self.refuse(field, getattr(self, field), "a finite number above 0")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            self.refuse("spread", self.spread, "a finite number >= 0")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The norm that distances are measured in."""
        return L2(0.0).norm(delta)

    def penalty(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """How far logits are from the order of ``targets``, one value >= 0 a sample."""
        raise TypeError(f"{type(self).__name__} states no penalty")

    @contextmanager
    def energy(self, model: nn.Module, x: Tensor, targets: Tensor, clean: Tensor) -> Iterator[Energy]:
        """A function of inputs like ``x`` that gives penalties (n,) and logits (n, c); ``clean``: the logits of x."""

        def look(z: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(z)
            return self.penalty(logits, targets), logits

        yield look

    def search(self, model: nn.Module, x: Tensor, goal: Goal, *, seed: int, index: Tensor, **_: Tensor) -> AttackResult:
        where = type(self).__name__
        if not isinstance(model, nn.Module):
            raise InputError(f"{where}: the model is {type(model).__name__}; expected a torch module")
        with torch.no_grad():
            clean = model(x)
        check_outputs(where, clean, goal)
        low = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        high = torch.full_like(low, self.coef_upper)
        best, x_adv = torch.full_like(low, math.inf), x.clone()
        with self.energy(model, x, ordered_targets(goal, clean), clean) as energy:
            for stage in range(self.binary_search_steps):
                coef = (low + high) / 2
                noise = Draws(seed, f"{where}/{stage}", index).normal(*x.shape[1:]).to(x)
                found, size = self._descend(energy, x, goal, noise, coef)
                met, shorter = size.isfinite(), size < best
                x_adv[shorter], best = found[shorter], torch.minimum(best, size)
                low, high = torch.where(met, low, coef), torch.where(met, coef, high)
        count = torch.full((len(x),), self.steps * self.binary_search_steps, dtype=torch.int64, device=x.device)
        distance = self.measure(x_adv - x).masked_fill(best.isinf(), math.inf)
        return AttackResult(x_adv, best.isfinite(), distance, count + self.binary_search_steps + 1, count)

    def _descend(
        self, energy: Energy, x: Tensor, goal: Goal, noise: Tensor, coef: Tensor
    ) -> tuple[Float[Tensor, "n ..."], Float[Tensor, " n"]]:
        """The nearest point that met the goal on one way down, and its distance (infinity where none did)."""
        best, found = torch.full_like(coef, math.inf), x.clone()
        scale = self.spread * (self.bounds[1] - self.bounds[0])
        delta = (x + scale * noise).clamp_(*self.bounds).sub_(x).requires_grad_()
        optimiser = torch.optim.AdamW([delta], lr=self.lr)
        for step in range(self.steps + 1):
            if step == self.warmup:
                optimiser = torch.optim.AdamW([delta], lr=self.lr)
            with torch.set_grad_enabled(step < self.steps):
                penalty, logits = energy(x + delta)
                total = (coef * penalty).sum() + delta.square().sum()
            with torch.no_grad():
                size = self.measure(delta)
                better = goal.met(logits) & (size < best)
                found[better] = (x + delta)[better].clamp_(*self.bounds)
                best = torch.where(better, size, best)
                coef = torch.where(better, self.decay * coef, coef)
            if step < self.steps:
                (delta.grad,) = torch.autograd.grad(total, delta)
                optimiser.step()
                with torch.no_grad():
                    delta.copy_((x + delta).clamp_(*self.bounds) - x)
        return found, best
