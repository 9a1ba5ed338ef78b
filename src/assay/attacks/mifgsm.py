"""The momentum iterative fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.engine import GradientAttack, Memory


@dataclass(frozen=True, kw_only=True)
class MIFGSM(GradientAttack):
    """Steps of eps / steps along gathered gradients (Dong et al., 2018, arXiv:1710.06081, algorithm 1, eq. 6 and 7).

    g = ``momentum`` g + gradient / ||gradient||_1; the step is the ball's steepest direction for g: its sign in
    l-infinity. It starts at x. All steps are taken unless ``early_stop``: made to transfer, the points get better past
    the first success. Shapes, ranges and errors: see Attack; options: see GradientAttack.
    """

    steps: int = 10
    momentum: float = 1.0
    random_start: bool = False
    early_stop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.momentum >= 0:
            self.refuse("momentum", self.momentum, "a factor >= 0")

    def length(self, step: int) -> float:
        return self.ball.eps / max(self.steps, 1) if self.step_size is None else super().length(step)

    def shape(self, grad: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The gradient that is gathered."""
        return grad

    def direction(self, grad: Tensor, z: Tensor, memory: Memory, step: int) -> Float[Tensor, "n ..."]:
        grad = self.shape(grad)
        g = grad / wide(grad.flatten(1).abs().sum(1).clamp_min(1e-30), grad)
        memory["g"] = self.momentum * memory.get("g", torch.zeros_like(g)) + g
        return self.ball.ascent(memory["g"], z, self.bounds)
