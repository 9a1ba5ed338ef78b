"""Federated adversarial training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks import PGD
from assay.attacks.base import Goal
from assay.attacks.engine import GradientAttack
from assay.data import Data
from assay.defenses.base import AdversarialTrainer
from assay.defenses.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Residual(GradientAttack):
    """PGD on |f(x) - t| for networks with one output, t = -1 and 1 for labels 0 and 1."""

    early_stop: bool = False

    def objective(self, logits: Float[Tensor, " n"], goal: Goal) -> Float[Tensor, " n"]:
        return (logits - (2 * goal.labels() - 1)).abs()


@dataclass(frozen=True, kw_only=True)
class FederatedAT(FedAvg, AdversarialTrainer):
    """Federated adversarial learning, FAL (Li et al., 2022, arXiv:2208.03635): FedAvg on worst-case inputs.

    A client's step k trains on x~ = A(f_W(k), x, y), made against its own present weights W(k) at every local step.
    What is minimised is the mean over clients and samples of the loss at A(f_U, x, y). ``attack`` is A (None: PGD as
    ``eps``, ``norm``, ``attack_steps`` and ``step_size`` say; it climbs the training loss). Everything else is as in
    FedAvg, which is the control.
    """

    contract: ClassVar[bool] = False

    attack: GradientAttack | None = None

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        AdversarialTrainer.__post_init__(self)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor, data: Data, seed: int) -> Tensor:
        attack = self.attack
        if attack is None:
            kind = PGD if self.loss == "ce" else Residual
            attack = kind(ball=self.ball(), steps=self.attack_steps, step_size=self.step_size, early_stop=False)
        return replace(attack, bounds=data.bounds)(model, x, y, seed=seed, index=index)
