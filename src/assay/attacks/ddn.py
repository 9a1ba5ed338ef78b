"""DDN: decoupling direction and norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.engine import Climb
from assay.attacks.nearest import NearestAttack, cosine, scaled, unit


@dataclass(frozen=True, kw_only=True)
class DDN(NearestAttack):
    """Decoupled direction and norm (Rony et al., 2019, arXiv:1811.09600, algorithm 1), in l2.

    Each step moves along the normalised gradient of the cross-entropy by a length that falls from 1 to 0.01 along a
    cosine, then shortens the perturbation's norm by the factor 1 - ``gamma`` where the last point met the goal, or
    lengthens it by 1 + gamma. ``initial`` is the first norm, in the data's units; the
    length of a step is in units of their range. Shapes, ranges and errors: see Attack; options: see NearestAttack.
    """

    steps: int = 100
    loss: Literal["ce", "dlr", "margin"] = "ce"
    initial: float = 1.0
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts != 1:
            self.refuse("restarts", self.restarts, "1, as all runs start at x")
        if not (self.initial > 0 and 0 < self.gamma < 1):
            self.refuse("initial, gamma", (self.initial, self.gamma), "initial > 0 and gamma in (0, 1)")

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        size = run.memory.get("size", torch.full_like(run.level, self.initial))
        if run.step:
            size = torch.where(run.met, size * (1 - self.gamma), size * (1 + self.gamma))
        run.memory["size"] = size
        length = cosine(1.0, 0.01, run.step, self.steps) * (self.bounds[1] - self.bounds[0])
        delta = run.z - run.x + length * unit(run.grad)
        return (run.x + scaled(unit(delta), size)).clamp_(*self.bounds)
