"""The attack that knows of BEYOND."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.attacks import PGD, Ball, Linf
from assay.attacks.base import Goal, Targeted, Toward
from assay.attacks.engine import Memory
from assay.detect.beyond import FittedBEYOND
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating


@dataclass(frozen=True, kw_only=True)
class BeyondAdaptiveAttack(PGD):
    """x <- x - step (sign grad CE(f(x), t) + sign grad [CE(c(b(aug x)), t) + a mean cos(r(x), r(aug x))]).

    The adaptive attack of He et al. (2022, arXiv:2209.00005, section 5): the neighbours are to agree with the target
    label t, and with a = ``weight`` = -1 to be near; the gradient passes ``samples`` random views, drawn anew at each
    step. 50 steps of 0.002 in a ball of 8/255. The goal is ``Targeted(t)``, or the engine's ``targets`` choose t.
    Shapes, ranges and errors: see Attack; InputError where no class is aimed at.
    """

    ball: Ball = Linf(8 / 255)
    steps: int = 50
    step_size: float | None = 0.002 * 255 / 8
    random_start: bool = False
    early_stop: bool = False
    detector: FittedBEYOND
    weight: float = -1.0
    samples: int = 50

    def neighbour_loss(self, z: Float[Tensor, "n ..."], t: Tensor) -> Float[Tensor, " n"]:
        """What the second sign belongs to, one value a sample."""
        detector = replace(self.detector, k=self.samples, K=1)
        with evaluating(detector.networks):
            similarity, logits, _ = detector.parts(z)
        label = t.repeat_interleave(self.samples)
        entropy = F.cross_entropy(logits.flatten(0, 1), label, reduction="none").reshape(len(z), self.samples)
        return entropy.mean(1) + self.weight * similarity.mean(1)

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        if not isinstance(goal, Targeted | Toward):
            raise InputError(
                f"BeyondAdaptiveAttack: the goal is {type(goal).__name__}; expected Targeted, or targets > 0"
            )
        level, own, passes = super().slope(level, logits, z, goal)
        point = z.detach().requires_grad_()
        with torch.enable_grad():
            (around,) = torch.autograd.grad(self.neighbour_loss(point, goal.t).sum(), point)
        return level, own.sign() - around.sign(), passes + self.samples

    def direction(
        self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], memory: Memory, step: int
    ) -> Float[Tensor, "n ..."]:
        return grad
