"""Directional attacks: inputs in a ball whose outputs move as far as possible along a given direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.attacks.balls import L2, Linf
from assay.attacks.base import Goal
from assay.attacks.engine import Climb, GradientAttack
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import Draws

Heuristic = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Direction(Goal):
    """Outputs that move along ``u`` (n, m), any finite numbers: the likelihood is <u, Phi(x)>. It is never met."""

    u: Float[Tensor, "n m"]

    def labels(self) -> Tensor:
        """The last output that the direction has, (n,): a model with fewer outputs cannot follow it."""
        return torch.full((len(self.u),), self.u.shape[1] - 1)

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        u = self.u
        if not isinstance(u, Tensor) or u.dim() != 2 or len(u) != n or not u.is_floating_point():
            kind = f"{u.dtype} of shape {tuple(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
            raise InputError(f"{where}: the direction is {kind}; expected floats of shape ({n}, m)")
        if not torch.isfinite(u).all():
            raise InputError(f"{where}: the direction has NaN or infinite values; expected finite ones")

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)

    def likelihood(self, logits: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        return (self.u * logits).sum(1)


@dataclass(frozen=True, kw_only=True)
class DirectionalStep(GradientAttack):
    """One step to the edge of the ball; its end counts. Goals are a ``Direction``; options as in GradientAttack."""

    contract: ClassVar[bool] = True

    steps: int = 1
    step_size: float | None = 1.0
    random_start: bool = False
    early_stop: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class DirectionalAscent(DirectionalStep):
    """Projected ascent by steps of 2 eps / ``steps`` that keeps its best point; x itself where none is better."""

    steps: int = 10
    step_size: float | None = None

    def length(self, step: int) -> float:
        return 2 * self.ball.eps / max(self.steps, 1) if self.step_size is None else super().length(step)

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        run.record(run.level > run.value[run.rows])
        return torch.zeros_like(run.met)


@dataclass(frozen=True, kw_only=True)
class AttackOperator:
    """A_r(x) = x + d with |d| <= r that raises <u, Phi(x + d) - Phi(x)> (Bouchet and Vidal, 2025, arXiv:2510.01461).

    ``operator(phi, x, u, radius) -> x + d``: phi a torch module (n, d) -> (n, m), x (d,), u (m,), radius > 0.
    ``attack`` is "fgsm", one step, d = r sign(J^T u) for ``norm`` inf and r J^T u / |J^T u| for 2; or "pgd", ``steps``
    steps of 2 r / steps, each projected on the ball, the best point kept; or a callable (phi, x, u, radius) -> x + d,
    for models without gradients. For a linear Phi both give the step of "fgsm", in closed form. Where J^T u is 0 (dead
    units) x comes back. Points stay in ``bounds``. The constants follow a reconstruction.

    ``gradients`` is the number of gradient evaluations of one call. Raises InputError for other shapes or radii.
    """

    kind: ClassVar[str] = "function"

    attack: Literal["fgsm", "pgd"] | Heuristic = "pgd"
    norm: float = 2
    steps: int = 10
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if not callable(self.attack) and self.attack not in ("fgsm", "pgd"):
            raise InputError(f"AttackOperator: attack is {self.attack!r}; expected 'fgsm', 'pgd' or a callable")
        if self.norm not in (2, math.inf) or self.steps < 1:
            raise InputError(f"AttackOperator: norm {self.norm}, steps {self.steps}; expected 2 or inf, and steps >= 1")

    @property
    def gradients(self) -> int:
        """Gradient evaluations of one call; none for a callable, which is not known to make any."""
        return 0 if callable(self.attack) else self.steps if self.attack == "pgd" else 1

    def climber(self, radius: float) -> GradientAttack:
        """The gradient attack that solves for d in the ball of this radius."""
        ball = L2(radius) if self.norm == 2 else Linf(radius)
        if self.attack == "fgsm":
            return DirectionalStep(ball=ball, bounds=self.bounds)
        return DirectionalAscent(ball=ball, steps=self.steps, bounds=self.bounds)

    def __call__(
        self, phi: nn.Module, x: Float[Tensor, " d"], u: Float[Tensor, " m"], radius: float, *, seed: int = 0
    ) -> Float[Tensor, " d"]:
        """The attacked point. ``seed`` is for attacks that are random; those built in are not."""
        if x.dim() != 1 or u.dim() != 1 or not (math.isfinite(radius) and radius > 0) or not torch.isfinite(x).all():
            found = f"x {tuple(x.shape)}, u {tuple(u.shape)}, radius {radius}"
            raise InputError(f"AttackOperator: {found}; expected finite (d,), (m,) and a finite radius > 0")
        if callable(self.attack):
            return self.attack(phi, x, u, radius)
        goal, device = Direction(u.detach()[None]), device_of(phi)
        goal.check("AttackOperator", 1)
        with evaluating(phi):
            draws = Draws(seed, "AttackOperator", torch.zeros(1, dtype=torch.int64, device=device))
            climb = Climb(self.climber(radius), phi, x.detach()[None].to(device), goal.to(device), draws)
            climb.run()
        return climb.x_adv[0].to(x.device)
