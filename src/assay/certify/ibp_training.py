"""Certified training by interval bound propagation."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.certify.bounds import LpBall, graph_of
from assay.certify.bounds.engine import sweep
from assay.certify.certified_training import CertifiedTrainer, margin_bounds, robust_cross_entropy
from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import seeded
from assay.training import State

Box = tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]


@dataclass(frozen=True, kw_only=True)
class IBPTraining(CertifiedTrainer):
    """Minimise kappa x cross-entropy + (1 - kappa) x cross-entropy of interval lower bounds of the margins.

    Gowal et al., 2018, arXiv:1810.12715, section 3, on the linf ball of ``eps`` cut to the data's bounds. While the
    radius grows to ``eps`` (see CertifiedTrainer), the share of plain cross-entropy falls along with it from 1 to
    ``kappa``: 0.5 in their recipe, 0 in that of Mao et al. (2024, arXiv:2306.10426). ``l1`` weighs the sum of absolute
    weights of linear and convolutional layers (Mueller et al., 2023, arXiv:2210.04871). ``fast_init`` first draws these
    weights anew, but for the last layer, from N(0, 2 pi / fan_in^2), at which the bounds of a deep network neither grow
    nor shrink (Shi et al., 2021, arXiv:2103.17268). Bounds see batch norm, whose statistics come from plain passes, and
    dropout in evaluation mode. Raises InputError on options out of range and on operators without a rule.
    """

    eps: float = 8 / 255
    lr: float = 2e-3
    kappa: float = 0.5
    l1: float = 0.0
    fast_init: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kappa <= 1 or not 0 <= self.l1 < math.inf:
            raise InputError(
                f"{type(self).__name__}: kappa={self.kappa}, l1={self.l1}; expected kappa in [0, 1], finite l1 >= 0"
            )

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        return super().fit(fast_initialised(model, seed=seed) if self.fast_init else model, data, seed=seed, **options)

    def bound_loss(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Tensor:
        kappa = 1 - (1 - self.kappa) * eps / self.eps
        total = (1 - kappa) * self.robust_loss(model, *self.box(model, batch, eps, state), batch.y)
        if kappa > 0 or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            total = total + kappa * F.cross_entropy(model(batch.x), batch.y)
        return total + self.l1 * sum(w.abs().sum() for w in _weights(model)) if self.l1 else total

    def box(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Box:
        """Centre and radius (n, ...) of what is propagated for each sample."""
        return clipped_box(batch.x, eps, state.data.bounds)

    def robust_loss(
        self, model: nn.Module, center: Float[Tensor, "n ..."], radius: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the worst margins over the box, differentiable in the parameters."""
        with evaluating(model):
            graph = graph_of(model, center)
        return robust_cross_entropy(margin_bounds(sweep(graph, model, center, LpBall(eps=radius)), y), y)


def clipped_box(x: Float[Tensor, "n ..."], eps: float, bounds: tuple[float, float]) -> Box:
    """Centre and radius of the linf ball of ``eps`` around x cut to ``bounds``."""
    lower, upper = (x - eps).clamp(*bounds), (x + eps).clamp(*bounds)
    return (lower + upper) / 2, (upper - lower) / 2


def fast_initialised(model: nn.Module, *, seed: int) -> nn.Module:
    """A copy with weights drawn from N(0, 2 pi / fan_in^2) in all linear and convolutional layers but the last."""
    other = copy.deepcopy(model)
    with seeded(seed, "fast init"), torch.no_grad():
        for w in _weights(other)[:-1]:
            nn.init.normal_(w, 0.0, math.sqrt(2 * math.pi) / w[0].numel())
    return other


def _weights(model: nn.Module) -> list[Tensor]:
    """The weights of linear and convolutional layers, in order."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
