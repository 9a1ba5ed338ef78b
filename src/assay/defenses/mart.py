"""MART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks import PGD
from assay.data import Batch
from assay.defenses.trades import START
from assay.defenses.worst_case import Network, WorstCaseTrainer
from assay.losses import MARTLoss
from assay.runtime.random import Draws, derive
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class Ascent(PGD):
    """PGD on the cross-entropy from next to the sample (the released code of MART; TRADES begins alike)."""

    early_stop: bool = False

    def start(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        return START * draws.normal(*x.shape[1:]).to(x)


@dataclass(frozen=True, kw_only=True)
class MART(WorstCaseTrainer):
    """Boosted cross-entropy + ``beta`` x KL weighted by how wrong the clean prediction is (Wang et al., 2020, ICLR).

    Algorithm 1 with the loss of eq. 11 (see losses.MARTLoss); ``beta`` is the paper's lambda. The inner maximisation
    climbs the cross-entropy in evaluation mode.
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    attack_steps: int = 10
    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        MARTLoss(self.beta)

    def worst(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, "n ..."]:
        attack = Ascent(ball=self.ball(), steps=self.attack_steps, step_size=self.step_size, bounds=state.data.bounds)
        return attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)

    def outer(self, network: Network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return MARTLoss(self.beta)(network(x), y, network(x_adv))
