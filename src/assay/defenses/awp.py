"""AWP: adversarial training at weights that are perturbed against it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from assay.attacks import PGD
from assay.data import Batch
from assay.defenses.trades import TRADES
from assay.defenses.worst_case import Network, WorstCaseTrainer
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive
from assay.training import State

TINY = 1e-20


@dataclass(frozen=True, kw_only=True)
class AWP(WorstCaseTrainer):
    """Descend, at the weights w, along the gradient taken at w + v (Wu et al., 2020, arXiv:2004.05884, algorithm 1).

    With the worst points found at w, v is one step of ascent on the loss in the weights: for each tensor of two or more
    dimensions ``gamma`` |w| g / |g| (eq. 9, 10 with K2 = 1); biases and norms stay. ``on`` "pgd" is AT-AWP, the
    cross-entropy of PGD's points, "trades" TRADES-AWP with ``beta``. The pass that finds v leaves the model's buffers
    (batch statistics) alone. It costs one pass more than its base.
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    attack_steps: int = 10
    on: Literal["pgd", "trades"] = "pgd"
    gamma: float = 5e-3
    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on not in ("pgd", "trades"):
            raise unknown("base of AWP", str(self.on), ("pgd", "trades"))
        if not (math.isfinite(self.gamma) and self.gamma >= 0 and math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"AWP: gamma={self.gamma}, beta={self.beta}; expected finite numbers >= 0")

    def _trades(self) -> TRADES:
        names = ("eps", "norm", "attack_steps", "step_size", "beta")
        return TRADES(**{n: getattr(self, n) for n in names})

    def worst(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, "n ..."]:
        if self.on == "trades":
            return self._trades().worst(model, batch, state)
        attack = PGD(
            ball=self.ball(),
            steps=self.attack_steps,
            step_size=self.step_size,
            early_stop=False,
            bounds=state.data.bounds,
        )
        return attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)

    def outer(self, network: Network, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        if self.on == "trades":
            return self._trades().outer(network, x, x_adv, y)
        return F.cross_entropy(network(x_adv), y)

    def perturbation(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """v by the name of its tensor, without a gradient; none for tensors that are frozen or not used."""
        names = [n for n, p in model.named_parameters() if p.dim() > 1 and p.requires_grad]
        free: dict[str, Tensor] = {
            n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())
        }
        weights = [free[n].requires_grad_() for n in names]
        if not weights:
            return {}
        loss = self.outer(_at(model, free), x, x_adv, y)
        slopes = torch.autograd.grad(loss, weights, allow_unused=True)
        return {
            n: self.gamma * w.detach().norm() / (g.norm() + TINY) * g
            for n, w, g in zip(names, weights, slopes, strict=True)
            if g is not None
        }

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        x_adv = self.worst(model, batch, state)
        v = self.perturbation(model, batch.x, x_adv, batch.y)
        moved = {n: p + v[n] for n, p in model.named_parameters() if n in v}
        return self.outer(_at(model, moved), batch.x, x_adv, batch.y)


def _at(model: nn.Module, weights: Mapping[str, Tensor]) -> Network:
    """The model with some of its tensors replaced."""
    return lambda x: functional_call(model, dict(weights), (x,))
