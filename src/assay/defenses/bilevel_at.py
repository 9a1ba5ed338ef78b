"""Adversarial training in two levels: an inner problem with a log barrier, and the gradient through its solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks import Linf
from assay.attacks.engine import Climb, GradientAttack
from assay.runtime.errors import InputError

Each = Callable[[Tensor, Tensor], Tensor]  # outputs (n, ..) and labels (n,) to one loss a sample (n,)
INSIDE = 1e-4  # the least distance from a wall, over eps
Bounds = tuple[float, float]


def box(x: Tensor, eps: float, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """The ends (a, b) of each displacement: |d| <= eps and x + d in ``bounds``."""
    return (bounds[0] - x).clamp_min(-eps), (bounds[1] - x).clamp_max(eps)


def barrier_slope(delta: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The gradient of -sum[ln(b - d) + ln(d - a)]."""
    return 1 / (high - delta) - 1 / (delta - low)


@dataclass(frozen=True, kw_only=True)
class BarrierAttack(GradientAttack):
    """Projected steps down -CE(x + d) - c sum[ln(b - d) + ln(d - a)] (Sow et al., 2024, arXiv:2308.00311, eq. 7).

    From d = 0 a step moves each coordinate by ``step_size`` x eps against the sign of its slope, less and less over the
    later half so that it settles, and is projected to the box shrunk by 1e-4 eps: a finite step can jump the wall.
    """

    early_stop: bool = False
    random_start: bool = False
    c: float = 5e-3

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        return self._inside(super().begin(run), run.x)

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        low, high = box(run.x, self.ball.eps, self.bounds)
        slope = run.grad - self.c * barrier_slope(run.z - run.x, low, high)
        length = self.length(run.step) * min(1.0, 2 * (1 - run.step / self.steps))
        return self._inside(run.z + length * slope.sign(), run.x)

    def _inside(self, z: Tensor, x: Tensor) -> Tensor:
        low, high = box(x, self.ball.eps, self.bounds)
        room = INSIDE * self.ball.eps
        return x + torch.minimum(torch.maximum(z - x, low + room), high - room)


def log_barrier_attack(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    eps: float,
    c: float,
    steps: int,
    step_size: float,
    *,
    bounds: Bounds = (0.0, 1.0),
    index: Int[Tensor, " n"] | None = None,
    seed: int,
) -> Float[Tensor, "n ..."]:
    """Displacements strictly inside |d| < eps and x + d within ``bounds``: see BarrierAttack.

    ``c`` > 0 is the barrier's weight against the cross-entropy, ``step_size`` a fraction of eps.
    """
    if not 0 < c < math.inf:
        raise InputError(f"log_barrier_attack: c={c}; expected a finite number > 0")
    attack = BarrierAttack(ball=Linf(eps), steps=steps, step_size=step_size, c=c, bounds=bounds)
    return attack(model, x, y, seed=seed, index=index) - x


def negative_entropy(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The attacker's loss: minus cross-entropy."""
    return -F.cross_entropy(logits, y, reduction="none")


def cross_entropies(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of each sample."""
    return F.cross_entropy(logits, y, reduction="none")


def implicit_hypergradient(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    delta: Float[Tensor, "n ..."],
    c: float,
    loss: Each = cross_entropies,
    attack_loss: Each = negative_entropy,
    *,
    eps: float,
    bounds: Bounds = (0.0, 1.0),
    hessian: Literal["diagonal", "cg"] = "diagonal",
    cg_steps: int = 20,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(l_i, s_i): the losses, without gradient, and surrogates with the same values whose gradient is h_i = grad_theta
    l_i - (d^2 lbar_i / d theta d d) (d^2 lbar_i / d d^2)^-1 grad_d l_i (Sow et al., 2024, arXiv:2308.00311, from
    eq. 7 by the implicit function theorem).

    lbar is ``attack_loss`` with the barrier of weight ``c`` > 0, ``delta`` its minimiser, strictly inside the box of
    ``eps`` and ``bounds``. "diagonal" takes the barrier's second derivative c (1 / (b - d)^2 + 1 / (d - a)^2) alone:
    exact where attack_loss is linear in d, as logits of a ReLU network are between its kinks; cross-entropy adds
    curvature that it leaves out. "cg" solves the whole system by at most ``cg_steps`` conjugate gradients, each one
    more product with the Hessian, which must be positive definite. InputError for c <= 0 and delta on a wall.
    """
    low, high = box(x, eps, bounds)
    if not 0 < c < math.inf or not bool(((delta > low) & (delta < high)).all()):
        raise InputError(f"implicit_hypergradient: c={c}; expected c > 0 and delta strictly inside its box")
    d = delta.detach().requires_grad_()
    with torch.enable_grad():
        out = model(x + d)
        each = loss(out, y)
        (slope,) = torch.autograd.grad(each.sum(), d, retain_graph=True)
        (attack,) = torch.autograd.grad(attack_loss(out, y).sum(), d, create_graph=True)
    curve = c * (1 / (high - delta).square() + 1 / (delta - low).square())
    answer = slope / curve
    if hessian == "cg":
        answer = _solved(attack, d, curve, slope, cg_steps)
    cross = (attack * answer).flatten(1).sum(1)
    return each.detach(), each - cross + cross.detach()


def _solved(attack: Tensor, d: Tensor, curve: Tensor, right: Tensor, steps: int) -> Tensor:
    """(H + diag(curve)) v = right for each sample, H the second derivative of what ``attack`` is the first of."""

    def product(v: Tensor) -> Tensor:
        linear = not attack.requires_grad
        (found,) = (None,) if linear else torch.autograd.grad(attack, d, v, retain_graph=True, allow_unused=True)
        return curve * v if found is None else found + curve * v

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.dim() - 1))

    v = torch.zeros_like(right)
    rest = way = right
    size = dot(rest, rest)
    for _ in range(steps):
        along = product(way)
        length = size / dot(way, along).clamp_min(torch.finfo(size.dtype).tiny)
        v, rest = v + length * way, rest - length * along
        grown = dot(rest, rest)
        way, size = rest + grown / size.clamp_min(torch.finfo(size.dtype).tiny) * way, grown
    return v.detach()
