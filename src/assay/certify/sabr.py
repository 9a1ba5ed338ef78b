"""Certified training on small boxes around adversarial points."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from assay.attacks import PGD
from assay.attacks.balls import Linf
from assay.certify.ibp_training import Box, IBPTraining, clipped_box
from assay.data import Batch
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class SABR(IBPTraining):
    """Train on the worst margins over a small box of ``lam`` times the ball around a PGD point inside the ball.

    Mueller et al., 2023, arXiv:2210.04871, section 3; as in the released code the small box has, in each coordinate,
    ``lam`` of the radius of the ball cut to the data's bounds, and its centre is moved so that it stays inside. PGD
    takes ``attack_steps`` steps of ``step_size`` x eps in evaluation mode; ``lam`` = 1 is IBP. Others: IBPTraining.
    """

    kappa: float = 0.0
    lam: float = 0.4
    attack_steps: int = 8
    step_size: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lam <= 1 or self.attack_steps < 1 or self.step_size <= 0:
            raise InputError(
                f"SABR: lam={self.lam}, attack_steps={self.attack_steps}, step_size={self.step_size}; "
                "expected 0 < lam <= 1, at least one step and a size above 0"
            )

    def box(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Box:
        center, radius = clipped_box(batch.x, eps, state.data.bounds)
        attack = PGD(
            ball=Linf(eps),
            steps=self.attack_steps,
            step_size=self.step_size,
            early_stop=False,
            bounds=state.data.bounds,
        )
        x_adv = attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)
        small = self.lam * radius
        return x_adv.maximum(center - radius + small).minimum(center + radius - small), small
