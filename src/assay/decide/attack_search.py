"""Search by directional attacks of a network alone: fast at first, stuck where no attack helps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor, nn

from assay.attacks import AttackOperator
from assay.decide.cdsm import CDSM
from assay.decide.direct_search import Box, Frame, OptResult, Spent, Walk
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import derive

Outputs = Callable[[Tensor], Tensor]


class Surrogate(nn.Module):
    """phi of the scaled variables: (k, n) float64 to (k, m) float64."""

    low: Tensor
    span: Tensor

    def __init__(self, phi: nn.Module, frame: Frame) -> None:
        super().__init__()
        self.phi = phi
        self.register_buffer("low", torch.from_numpy(frame.low).to(device_of(phi)))
        self.register_buffer("span", torch.from_numpy(frame.span).to(device_of(phi)))
        self.dtype = _dtype(phi)

    def forward(self, z: Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        return self.phi((self.low + self.span * z).to(self.dtype)).double()


def _dtype(phi: nn.Module) -> torch.dtype:
    """What phi takes: the type of its first parameter, float64 where it has none."""
    return next((p.dtype for p in phi.parameters()), torch.float64)


@dataclass(frozen=True)
class NetworkObjective:
    """x (n,) to f(Phi(x)) where c(Phi(x)) <= 0, else -inf: f gives a number of y (m,), c gives (q,).

    Phi is run as it is: a network with dropout or batch normalisation should be in evaluation mode. This is what
    ``CDSM.maximize`` takes where no gradient is to be used.
    """

    phi: nn.Module
    f: Outputs
    constraints: Outputs | None = None

    @cached_property
    def _home(self) -> tuple[torch.device, torch.dtype]:
        return device_of(self.phi), _dtype(self.phi)

    @torch.no_grad()
    def outputs(self, x: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Phi(x), float64."""
        return self.phi(x[None].to(*self._home))[0].double().cpu()

    def violation(self, y: Float[Tensor, " m"]) -> float:
        """The sum of the constraints' positive parts; infinite where it is not a number."""
        if self.constraints is None:
            return 0.0
        total = float(self.constraints(y).clamp_min(0).sum())
        return total if math.isfinite(total) else math.inf

    def __call__(self, x: Float[Tensor, " n"]) -> float:
        """f(Phi(x)), or -inf where a constraint is violated or Phi is not finite."""
        y = self.outputs(x)
        if not torch.isfinite(y).all() or self.violation(y) > 0:
            return -math.inf
        return float(self.f(y))


@dataclass(frozen=True, kw_only=True)
class AttackSearch:
    """Directional attacks as the only step: the attack half of Bouchet and Vidal (2025, arXiv:2510.01461, section 3).

    ``maximize(phi, f, x0, constraints, bounds, seed=0)``: phi a module (k, n) -> (k, m); f a torch function of y (m,)
    that gives a number, constraints one that gives (q,), feasible where <= 0; x0 (n,) feasible, or ``phase1=True``:
    then ``cdsm`` first minimises the violation, at the budget's expense. Variables are scaled to [0, 1] by ``bounds``.

    An iteration tries A_r(z) at up to ``tries`` radii from the present one: accepted candidates double it, others halve
    it, within [``radius_min``, ``radius_max``]. The direction is u = grad f(y) / |grad f(y)|. Where constraints are
    near-active, c_j(y) >= -``near``, the direction u - sum_j l_j grad c_j(y) with l >= 0 is tried first, l such that
    its pull-back J^T u - sum_j l_j J^T grad c_j is the projection of J^T u onto the directions that raise none of
    them (Moreau; by non-negative least squares). The cone is taken at the inputs: at the outputs it would change
    nothing where f and c depend on other outputs. ``project=False`` is for constraints without derivatives.

    Every gradient evaluation is charged as an evaluation. The run ends at the smallest radius, or with the budget of
    ``cdsm``, whose ``increase`` and seed it shares. The treatment of constraints and radii follows a reconstruction;
    the paper's own was not at hand.
    """

    kind: ClassVar[str] = "function"

    operator: AttackOperator = field(default_factory=AttackOperator)
    cdsm: CDSM = field(default_factory=CDSM)
    radius0: float = 0.25
    radius_min: float = 1e-6
    radius_max: float = 1.0
    tries: int = 3
    near: float = 0.1
    project: bool = True
    phase1: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.radius_min <= self.radius0 <= self.radius_max < math.inf or self.tries < 1:
            radii = (self.radius_min, self.radius0, self.radius_max)
            where = type(self).__name__
            raise InputError(
                f"{where}: radii {radii}, tries {self.tries}; expected 0 < min <= start <= max, tries >= 1"
            )

    def maximize(
        self,
        phi: nn.Module,
        f: Outputs,
        x0: Float[Tensor, " n"],
        constraints: Outputs | None = None,
        bounds: Box | None = None,
        *,
        seed: int = 0,
    ) -> OptResult:
        """The best feasible point found from x0."""
        frame, problem = Frame.of(type(self).__name__, x0, bounds), NetworkObjective(phi, f, constraints)
        surrogate = Surrogate(phi, frame)
        limits = (0.0, 1.0) if frame.boxed else (-math.inf, math.inf)
        operator = replace(self.operator, bounds=limits)
        with evaluating(surrogate):
            x0, spent = self._feasible(problem, x0, bounds, seed)
            walk = self.cdsm.begin(problem, x0, frame, seed, spent)
            walk.radius = self.radius0
            try:
                while self._attack(walk, problem, surrogate, operator, seed) or self.otherwise(walk):
                    pass
            except Spent:
                return walk.result()
        return walk.result()

    def otherwise(self, walk: Walk) -> bool:
        """What follows a failed attack step; whether to go on."""
        return walk.radius > self.radius_min

    def _feasible(self, problem: NetworkObjective, x0: Tensor, bounds: Box | None, seed: int) -> tuple[Tensor, int]:
        """A feasible start and what it cost."""
        if not self.phase1 or problem.violation(problem.outputs(x0)) == 0:
            return x0, 0
        found = self.cdsm.maximize(
            lambda x: -problem.violation(problem.outputs(x)), x0, bounds, seed=derive(seed, "phase1"), target=0.0
        )
        if found.value < 0 or found.evals >= self.cdsm.max_evals:
            where = type(self).__name__
            raise InputError(f"{where}: phase 1 left a violation of {-found.value:.3g}; expected a start nearer to 0")
        return found.x, found.evals

    def _attack(
        self, walk: Walk, problem: NetworkObjective, surrogate: Surrogate, operator: AttackOperator, seed: int
    ) -> bool:
        z = torch.from_numpy(walk.z).to(surrogate.low)
        directions = self.directions(walk, problem, surrogate)
        for _ in range(self.tries):
            for u in directions:
                walk.charge(operator.gradients)
                at = operator(surrogate, z, u, walk.radius, seed=derive(seed, "attack", walk.evals))
                if walk.offer(at.double().cpu().numpy(), walk.radius, "attack"):
                    walk.radius = min(2 * walk.radius, self.radius_max)
                    return True
            walk.radius = max(walk.radius / 2, self.radius_min)
        return False

    def directions(self, walk: Walk, problem: NetworkObjective, surrogate: Surrogate) -> list[Float[Tensor, " m"]]:
        """Unit directions in output space, the projected one first where constraints are near-active."""
        z = torch.from_numpy(walk.z).to(surrogate.low)
        y = problem.outputs(walk.frame.outward(walk.z)).requires_grad_()
        with torch.enable_grad():
            u = _slope(problem.f(y), y)
        found = [u]
        active = self._near(problem, y) if self.project else u.new_zeros(0, len(u))
        if len(active):
            walk.charge(1 + len(active))
            rows = pulled_back(surrogate, z, torch.cat((u[None], active)))
            share = torch.from_numpy(nnls(rows[1:].T, rows[0])[0])
            found.insert(0, u - share @ active)
        return [v / v.norm() for v in found if v.norm() > 0]

    def _near(self, problem: NetworkObjective, y: Float[Tensor, " m"]) -> Float[Tensor, "q m"]:
        """Gradients of the near-active constraints."""
        if problem.constraints is None:
            return y.new_zeros(0, len(y))
        with torch.enable_grad():
            c = problem.constraints(y).reshape(-1)
            slopes = [_slope(c[j], y) for j in (c >= -self.near).nonzero()[:, 0]]
        return torch.stack(slopes) if slopes else y.new_zeros(0, len(y))


def _slope(value: Tensor, y: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The gradient of a number in y, 0 where it does not depend on y or only by steps."""
    if not value.requires_grad:
        return torch.zeros_like(y)
    return torch.autograd.grad(value, y, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def pulled_back(surrogate: nn.Module, z: Float[Tensor, " n"], rows: Float[Tensor, "k m"]) -> Float[np.ndarray, "k n"]:
    """J^T v of every row v, J the Jacobian of the surrogate at z: one pass over k copies of z."""
    copies = z.expand(len(rows), -1).clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad((surrogate(copies) * rows.to(z)).sum(), copies)
    return grad.double().cpu().numpy()
