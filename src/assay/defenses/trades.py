"""TRADES."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.base import Goal
from assay.attacks.engine import GradientAttack
from assay.data import Batch
from assay.defenses.worst_case import Network, WorstCaseTrainer
from assay.losses.pairs import divergence
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws, derive
from assay.training import State

START = 1e-3  # deviation of the starting point's normal displacement (the paper's algorithm 1)


@dataclass(frozen=True, kw_only=True)
class Drift(GradientAttack):
    """Climb the KL divergence from the clean predictions ``clean`` (n, c) (Zhang et al., 2019, algorithm 1)."""

    early_stop: bool = False
    clean: Tensor

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return F.kl_div(logits.log_softmax(1), self.clean, reduction="none").sum(1)

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        return START * draws.normal(*x.shape[1:]).to(x)


@dataclass(frozen=True, kw_only=True)
class TRADES(WorstCaseTrainer):
    """Cross-entropy on clean inputs + ``beta`` x KL(clean || worst) (Zhang et al., 2019, arXiv:1901.08573, eq. 5).

    ``beta`` is the paper's 1/lambda. The inner maximisation runs in evaluation mode, the loss in training mode.
    """

    contract: ClassVar[bool] = False

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"{type(self).__name__}: beta={self.beta}; expected a finite number >= 0")

    def worst(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, "n ..."]:
        with evaluating(model), torch.no_grad():
            clean = model(batch.x).softmax(1)
        attack = Drift(
            ball=self.ball(),
            steps=self.attack_steps,
            step_size=self.step_size,
            bounds=state.data.bounds,
            clean=clean,
        )
        return attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)

    def outer(self, network: Network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        logits = network(x)
        return F.cross_entropy(logits, y) + self.beta * divergence(logits, network(x_adv)).mean()
