"""Stochastic weight averaging with a Gaussian."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import update_bn

from assay.attacks.surrogates.base import Surrogate, Surrogates, at_epochs
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.random import torch_rng
from assay.training import Plan, State, fit


@dataclass(frozen=True, kw_only=True)
class SWAGSurrogate(Surrogate):
    """Draws from a Gaussian through the weights along a training (Maddox et al., 2019, arXiv:1902.02476, algorithm 1).

    After ``epochs`` at a rate that falls from ``lr`` along a half cosine, ``collect`` epochs at the constant rate
    ``swa_lr`` give at each end weights w_i. With their mean m, the diagonal d of their second moment less m^2 (at
    least 1e-30) and D the last ``rank`` deviations of w_i from the mean so far, a draw is

        m + ``scale`` (sqrt(d / 2) z1 + D z2 / sqrt(2 (K - 1))),    z1, z2 standard normal, K columns in D,

    and statistics of norms are computed anew on the data. Momentum is 0.9. Raises InputError for other options.
    """

    contract: ClassVar[bool] = False

    samples: int = 15
    epochs: int = 161
    collect: int = 139
    rank: int = 20
    scale: float = 1.0
    lr: float = 0.1
    swa_lr: float = 0.01
    weight_decay: float = 5e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.samples < 1 or self.epochs < 0 or self.collect < 2 or self.rank < 2 or self.batch_size < 1:
            given = self.samples, self.epochs, self.collect, self.rank, self.batch_size
            self.refuse(
                "samples, epochs, collect, rank, batch_size", given, "samples >= 1, epochs >= 0, collect, rank >= 2"
            )
        rates = self.lr, self.swa_lr, self.weight_decay, self.scale
        if not all(math.isfinite(r) and r >= 0 for r in rates) or self.lr == 0 or self.swa_lr == 0:
            self.refuse("lr, swa_lr, weight_decay, scale", rates, "rates > 0, the others finite and >= 0")

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> Surrogates:
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        plan = {"batch_size": self.batch_size, "optimizer": "sgd", "weight_decay": self.weight_decay}
        start = fit(model, data, _loss, Plan(epochs=self.epochs, lr=self.lr, **plan), seed=seed)  # type: ignore[arg-type]
        seen: list[Tensor] = []

        def keep(epoch: int, now: nn.Module) -> None:
            seen.append(parameters_to_vector(now.parameters()).detach().clone())

        after = Plan(epochs=self.collect, lr=self.swa_lr, schedule="constant", **plan)  # type: ignore[arg-type]
        hook = at_epochs(math.ceil(len(data) / self.batch_size), keep)
        last = fit(start, data, _loss, after, seed=seed + 1, hooks=(hook,))
        return Surrogates([self._network(last, w, data) for w in self.draws(torch.stack(seen), seed)]).eval()

    def draws(self, seen: Float[Tensor, "t p"], seed: int) -> Float[Tensor, "s p"]:
        """``samples`` draws from the Gaussian through the weights ``seen`` at the ends of epochs, in their order."""
        counts = torch.arange(1, len(seen) + 1, device=seen.device, dtype=seen.dtype)[:, None]
        away = (seen - seen.cumsum(0) / counts)[-self.rank :]
        mean = seen.mean(0)
        diagonal = (seen.square().mean(0) - mean.square()).clamp_min(1e-30)
        g = torch_rng(seed, "swag")
        z1 = torch.randn(self.samples, seen.shape[1], generator=g, dtype=seen.dtype).to(seen)
        z2 = torch.randn(self.samples, len(away), generator=g, dtype=seen.dtype).to(seen)
        spread = (diagonal / 2).sqrt() * z1 + z2 @ away / math.sqrt(2 * (len(away) - 1))
        return mean + self.scale * spread

    def _network(self, like: nn.Module, weights: Tensor, data: Data) -> nn.Module:
        net = copy.deepcopy(like)
        with torch.no_grad():
            vector_to_parameters(weights, net.parameters())
            update_bn((b.x.to(weights.device) for b in data.batches(self.batch_size)), net)
        return net.eval()


def _loss(model: nn.Module, batch: Batch, state: State) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)
