"""Denoising score matching: a network learns to tell the noise that was put on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.generate.score import NoisePrediction
from assay.generate.vpsde import VPSDE, broadcast
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.training import Plan, State, fit


@dataclass(frozen=True, kw_only=True)
class DenoisingScoreMatching:
    """``fit(net, data, *, seed)`` -> NoisePrediction: minimise |net(a x + b z, t) - z|^2 (Song et al., 2021,
    arXiv:2011.13456, eq. 7, weight b^2) over data x scaled to [-1, 1], noise z and times t.

    A ``share`` of the times is uniform in (0, ``t_small``] and the rest in (0, 1]: a detector reads small times alone.
    ``net``: see NoisePrediction. Raises InputError for values out of range and unusable data; ``net`` stays as it is.
    """

    kind: ClassVar[str] = "function"

    schedule: VPSDE = VPSDE()
    t_small: float = 0.1
    share: float = 0.7
    epochs: int = 4
    batch_size: int = 64
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if not (0 < self.t_small <= 1 and 0 <= self.share <= 1):
            given = f"t_small={self.t_small}, share={self.share}"
            raise InputError(f"DenoisingScoreMatching: {given}; expected t_small in (0, 1] and a share in [0, 1]")

    def times(self, u: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Times from two uniform numbers each."""
        return u[:, 1] * torch.where(u[:, 0] < self.share, self.t_small, 1.0)

    def objective(self, net: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch."""
        low, high = state.data.bounds
        x = (batch.x - low) / (high - low) * 2 - 1
        draws = state.draws("denoising", batch.index)
        t, z = self.times(draws.uniform(2)), draws.normal(*x.shape[1:])
        noisy = broadcast(self.schedule.alpha(t), x) * x + broadcast(self.schedule.sigma(t), x) * z
        return (NoisePrediction(net, self.schedule).noise(noisy, t) - z).square().mean()

    def fit(self, net: nn.Module, data: Data, *, seed: int) -> NoisePrediction:
        """The score of a trained copy of ``net``."""
        check_inputs("DenoisingScoreMatching", data.x, data.y, data.bounds)
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, warmup=0.05)
        return NoisePrediction(fit(net, data, self.objective, plan, seed=seed), self.schedule).eval()
