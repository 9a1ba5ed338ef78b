"""What adversarial trainers share: the ball, and the inner maximisation that the attack engine runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.attacks.balls import L2, Ball, Linf
from assay.runtime.errors import InputError
from assay.training import Trainer


@dataclass(frozen=True, kw_only=True)
class AdversarialTrainer(Trainer):
    """Train on worst-case inputs: the inner maximisation takes ``attack_steps`` steps of ``step_size`` x eps in a ball.

    ``eps`` is in the data's own units, ``norm`` "linf" or "l2". The control is plain training with the same plan.
    """

    contract: ClassVar[bool] = True

    eps: float = 0.1
    norm: Literal["linf", "l2"] = "linf"
    attack_steps: int = 7
    step_size: float = 0.25

    def __post_init__(self) -> None:
        positive = 0 < self.eps < math.inf and 0 < self.step_size < math.inf
        if self.norm not in ("linf", "l2") or not positive or self.attack_steps < 1:
            raise InputError(
                f"{type(self).__name__}: norm={self.norm!r}, eps={self.eps}, attack_steps={self.attack_steps}, "
                f"step_size={self.step_size}; expected norm linf or l2 and finite positive numbers"
            )

    def ball(self) -> Ball:
        """The ball of the perturbation."""
        return Linf(self.eps) if self.norm == "linf" else L2(self.eps)
