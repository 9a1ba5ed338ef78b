"""Adversarial training with PGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import PGD
from assay.data import Batch
from assay.defenses.base import AdversarialTrainer
from assay.runtime.random import derive
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class PGDTraining(AdversarialTrainer):
    """Minimise the cross-entropy of the worst point that PGD finds (Madry et al., 2018, arXiv:1706.06083, eq. 2.1)."""

    contract: ClassVar[bool] = False

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        attack = PGD(
            ball=self.ball(),
            steps=self.attack_steps,
            step_size=self.step_size,
            early_stop=False,
            bounds=state.data.bounds,
        )
        x_adv = attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)
        return F.cross_entropy(model(x_adv), batch.y)
