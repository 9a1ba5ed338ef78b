"""GAIRAT: adversarial training weighted by how many steps an attack needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks import PGD, Untargeted
from assay.attacks.engine import Climb
from assay.data import Batch
from assay.defenses.base import AdversarialTrainer
from assay.defenses.mail import relative
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws, derive
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class CountingPGD(PGD):
    """PGD that counts, under "kappa" of the run's memory, the points from which it stepped that were not fooled."""

    early_stop: bool = False

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        run.memory["kappa"] = run.memory.get("kappa", torch.zeros_like(run.met, dtype=torch.int64)) + ~run.met
        return torch.zeros_like(run.met)


def gairat_weights(kappa: Int[Tensor, " n"], steps: int, shift: float = -1.0) -> Float[Tensor, " n"]:
    """(1 + tanh(shift + 5 (1 - 2 kappa / steps))) / 2 scaled to mean 1 (eq. 6): few steps, large weight."""
    return relative(2 * (shift + 5 * (1 - 2 * kappa / steps)))  # (1 + tanh(z)) / 2 = sigmoid(2 z)


@dataclass(frozen=True, kw_only=True)
class GAIRAT(AdversarialTrainer):
    """Geometry-aware instance reweighting (Zhang et al., 2021, arXiv:2010.01736, algorithm 2, eq. 6).

    Cross-entropy of PGD's points, weighted by ``gairat_weights`` of the number of steps that PGD takes to fool the
    model; ``shift`` is the paper's lambda. The weights are 1 for the first ``burn_in`` of the steps (60 of 100 epochs).
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    attack_steps: int = 10
    shift: float = -1.0
    burn_in: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.shift) and 0 <= self.burn_in <= 1):
            raise InputError(f"GAIRAT: shift={self.shift}, burn_in={self.burn_in}; expected finite, burn_in in [0, 1]")

    def attacked(
        self, model: nn.Module, batch: Batch, state: State
    ) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """The worst points found, and how many of the steps began at a point that did not fool the model."""
        attack = CountingPGD(
            ball=self.ball(), steps=self.attack_steps, step_size=self.step_size, bounds=state.data.bounds
        )
        with evaluating(model):
            draws = Draws(derive(state.seed, state.step), "GAIRAT", batch.index)
            climb = Climb(attack, model, batch.x, Untargeted(batch.y), draws)
            climb.run(verify=False)
        return climb.x_adv, climb.memory["kappa"]

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        x_adv, kappa = self.attacked(model, batch, state)
        loss = F.cross_entropy(model(x_adv), batch.y, reduction="none")
        if state.step < self.burn_in * state.total:
            return loss.mean()
        return (gairat_weights(kappa, self.attack_steps, self.shift) * loss).mean()
