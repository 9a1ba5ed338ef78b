"""Minimum-norm attacks on the gradient engine: what they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.engine import Climb, IterativeAttack
from assay.runtime.errors import unknown

NORMS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1}
DUAL: dict[str, type[Ball]] = {"linf": L1, "l2": L2, "l1": Linf}


@dataclass(frozen=True, kw_only=True)
class NearestAttack(IterativeAttack):
    """Looks for the nearest point that meets the goal. A subclass states ``move``, and the ``norms`` that it knows.

    The nearest point that any pass saw counts. A sample is done, and leaves the batch, once it has one within
    ``enough``: 0 takes all steps, infinity stops at the first point found. Further options: IterativeAttack.
    """

    contract: ClassVar[bool] = True
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "minimum-norm"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    norm: Literal["linf", "l2", "l1"] = "l2"
    loss: Literal["ce", "dlr", "margin"] = "margin"
    enough: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in self.norms:
            raise unknown(f"norm of {type(self).__name__}", self.norm, self.norms)
        if not self.enough >= 0:
            self.refuse("enough", self.enough, "a distance >= 0")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return NORMS[self.norm](0.0).norm(delta)

    def dual(self, grad: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The dual norm: objective over ``dual(gradient)`` is the distance to where a linear objective is zero."""
        return DUAL[self.norm](0.0).norm(grad)

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        return run.x.clone()

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        nearness = -self.measure(run.z.detach() - run.x)
        run.record(run.met & (nearness > run.value[run.rows]), nearness)
        return self.resolved(run.value[run.rows], run.success[run.rows])

    def resolved(self, value: Float[Tensor, " n"], success: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        return success & (-value <= self.enough)


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """The value of a cosine schedule from ``first`` at step 0 to ``last`` at ``steps``."""
    return last + (first - last) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2


def unit(grad: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Each row over its Euclidean norm; a row of zeros stays."""
    return L2(0.0).ascent(grad, grad, (-math.inf, math.inf))


def scaled(delta: Float[Tensor, "n ..."], size: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
    """Each row of ``delta`` times its ``size``."""
    return delta * size.reshape(-1, *[1] * (delta.dim() - 1))


def linearise(logits: Float[Tensor, "n c"], z: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The nearest of the linearised boundaries to other classes: z_l - z_y (n,) and its gradient (n, ...).

    Of all classes l != y the one with the least |z_l - z_y| / ||gradient||_dual (Moosavi-Dezfooli et al., 2016,
    arXiv:1511.04599, eq. 8). One backward pass a class.
    """
    gaps = logits - logits.gather(1, y[:, None])
    ball = DUAL[norm](0.0)
    nearest = torch.full_like(gaps[:, 0], math.inf)
    level, slope = torch.zeros_like(nearest), torch.zeros_like(z)
    for c in range(gaps.shape[1]):
        (grad,) = torch.autograd.grad(gaps[:, c].sum(), z, retain_graph=True)
        distance = gaps[:, c].detach().abs() / ball.norm(grad).clamp_min(1e-12)
        closer = (distance < nearest) & (y != c)
        nearest, level = torch.where(closer, distance, nearest), torch.where(closer, gaps[:, c].detach(), level)
        slope[closer] = grad[closer]
    return level, slope
