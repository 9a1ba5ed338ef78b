"""WEAT: TRADES with every sample weighted by its energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from assay.defenses.trades import TRADES
from assay.defenses.worst_case import Network
from assay.losses import WEATLoss


@dataclass(frozen=True, kw_only=True)
class WEAT(TRADES):
    """TRADES whose samples weigh 1 / log(1 + exp |E(x)|) (Mirza et al., 2024, arXiv:2407.06315, section 4).

    Confident samples, of low energy, weigh less. ``variant`` "adv" puts the cross-entropy at the worst points instead
    of the clean ones; its released function has beta 7. For ``normalize`` see losses.WEATLoss. The inner maximisation
    is that of TRADES, and so is the cost. Published with batches of 128, 100 epochs of SGD (rate 0.1, weight decay
    5e-4, one cycle).
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    attack_steps: int = 10
    variant: Literal["nat", "adv"] = "nat"
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.criterion()

    def criterion(self) -> WEATLoss:
        """The loss of both logits."""
        return WEATLoss(self.variant, self.beta, self.normalize)

    def outer(self, network: Network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return self.criterion()(network(x), y, network(x_adv))
