"""Adversarial training by the smooth adversarial comp-sum loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.base import Goal
from assay.attacks.engine import GradientAttack
from assay.data import Batch
from assay.defenses.trades import START
from assay.defenses.worst_case import Network, WorstCaseTrainer
from assay.losses import CompSumLoss
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws, derive
from assay.training import State


def margin_shift(
    logits: Float[Tensor, "n c"], clean: Float[Tensor, "n c"], y: Int[Tensor, " n"]
) -> Float[Tensor, "n c"]:
    """D(x', y) - D(x, y), D the margins h_y - h_j of the label over each class j; the label's own entry is 0."""
    moved = logits - clean
    return moved.gather(1, y[:, None]) - moved


@dataclass(frozen=True, kw_only=True)
class MarginShift(GradientAttack):
    """Climb the squared length of the change of the margins from those of the ``clean`` logits (n, c), from next to the
    sample: at the sample itself it has no slope."""

    early_stop: bool = False
    clean: Tensor
    y: Tensor

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return margin_shift(logits, self.clean, self.y).square().sum(1)

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        return START * draws.normal(*x.shape[1:]).to(x)


@dataclass(frozen=True, kw_only=True)
class AdvCompSum(WorstCaseTrainer):
    """Phi_tau(sum over j of exp(-D_j(x) / rho)) + nu x sup |D(x') - D(x)|_2 (ADV-COMP-SUM; Mao et al., 2023,
    arXiv:2304.07288, section 5, the smooth adversarial comp-sum loss).

    D_j = h_y - h_j are the margins over the other classes; the first term is CompSumLoss(``tau``) of logits divided by
    ``rho``, the sup over the ball is what the inner steps find in evaluation mode. ``nu`` is a weight to be tuned, None
    the sqrt(c - 1) / rho for which the theory makes the sum an upper bound of the adversarial comp-sum rho-margin loss.
    eps, steps and step size default to 8 / 255, 10 and a quarter of eps. InputError for tau < 0, rho <= 0 and nu < 0.
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    attack_steps: int = 10
    tau: float = 1.0
    rho: float = 1.0
    nu: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        CompSumLoss(self.tau)
        if not 0 < self.rho < math.inf or not (self.nu is None or 0 <= self.nu < math.inf):
            raise InputError(f"AdvCompSum: rho={self.rho}, nu={self.nu}; expected finite numbers, rho > 0, nu >= 0")

    def weight(self, classes: int) -> float:
        """nu for this number of classes."""
        return math.sqrt(classes - 1) / self.rho if self.nu is None else self.nu

    def worst(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, "n ..."]:
        with evaluating(model), torch.no_grad():
            clean = model(batch.x)
        attack = MarginShift(
            ball=self.ball(),
            steps=self.attack_steps,
            step_size=self.step_size,
            bounds=state.data.bounds,
            clean=clean,
            y=batch.y,
        )
        return attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)

    def outer(self, network: Network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        logits = network(x)
        shift = torch.linalg.vector_norm(margin_shift(network(x_adv), logits, y), dim=1)
        return CompSumLoss(self.tau)(logits / self.rho, y) + self.weight(logits.shape[1]) * shift.mean()
