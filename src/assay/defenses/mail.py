"""MAIL: TRADES whose divergence is weighted by the probabilistic margin of the worst point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.defenses.trades import TRADES
from assay.defenses.worst_case import Network
from assay.losses.pairs import divergence
from assay.runtime.errors import InputError
from assay.training import State


def mail_weights(
    logits_adv: Float[Tensor, "n c"], y: Int[Tensor, " n"], slope: float = 2.0, bias: float = 0.0
) -> Float[Tensor, " n"]:
    """sigmoid(-slope (PM - bias)) scaled to mean 1, PM = p_y - max_{k != y} p_k at the worst points (eq. 4 and 6)."""
    p = logits_adv.detach().softmax(1)
    margin = p.gather(1, y[:, None])[:, 0] - p.scatter(1, y[:, None], -1.0).amax(1)
    return relative(-slope * (margin - bias))


def relative(z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """sigmoid(z) scaled to mean 1, also where every sigmoid rounds to 0."""
    return len(z) * F.logsigmoid(z).softmax(0)


@dataclass(frozen=True, kw_only=True)
class MAIL(TRADES):
    """MAIL-TRADES (Wang et al., 2021, arXiv:2106.07904, section 3.3): CE(clean) + ``beta`` x mean of w KL.

    w are ``mail_weights`` of ``slope`` and ``bias``; they are 1 for the first ``burn_in`` of the steps (the paper's 75
    of 100 epochs). The weights are scaled to mean 1 as in the paper; the released code multiplies them by 3.
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    attack_steps: int = 10
    slope: float = 2.0
    bias: float = 0.0
    burn_in: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.burn_in <= 1 and self.slope > 0 and math.isfinite(self.bias)):
            given = f"slope={self.slope}, bias={self.bias}, burn_in={self.burn_in}"
            raise InputError(f"MAIL: {given}; expected slope > 0, a finite bias, burn_in in [0, 1]")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        x_adv = self.worst(model, batch, state)
        if state.step < self.burn_in * state.total:
            return self.outer(model, batch.x, x_adv, batch.y)
        return self.weighted(model, batch.x, x_adv, batch.y)

    def weighted(self, network: Network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The loss after the burn-in."""
        logits, logits_adv = network(x), network(x_adv)
        w = mail_weights(logits_adv, y, self.slope, self.bias)
        return F.cross_entropy(logits, y) + self.beta * (w * divergence(logits, logits_adv)).mean()
