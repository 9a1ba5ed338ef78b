"""What certified trainers on boxes share: the schedule, the mixed objective, and the worst-case logits."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.certify.bounds import LpBall, graph_of
from assay.certify.bounds.engine import sweep
from assay.certify.margins import lower_margins
from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import seeded
from assay.training import State, Trainer

Box = tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]


@dataclass(frozen=True, kw_only=True)
class BoxTrainer(Trainer):
    """Minimise kappa x cross-entropy + (1 - kappa) x cross-entropy of the worst margins over a box, by intervals.

    Gowal et al., 2018, arXiv:1810.12715, section 3 and eq. 12. A subclass states the box around each sample. ``eps``
    (in the data's units) grows linearly from 0: it starts at the fraction ``warm_up`` of the steps and is reached
    ``ramp`` of the steps later; ``kappa`` falls along with it from 1 to its value. ``l1`` weighs the sum of absolute
    weights of linear and convolutional layers. ``fast_init`` first draws these weights anew, but for the last layer,
    from N(0, 2 pi / fan_in^2), at which interval bounds neither grow nor shrink (Shi et al., 2021, arXiv:2103.17268,
    section 3). Bounds see batch norm and dropout in evaluation mode. The control is plain training with the same plan.
    Raises InputError on options out of range and on operators without a rule.
    """

    contract: ClassVar[bool] = True

    eps: float = 0.1
    kappa: float = 0.0
    warm_up: float = 0.0
    ramp: float = 0.5
    l1: float = 0.0
    fast_init: bool = False

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not 0 < self.eps < math.inf or not 0 <= self.l1 < math.inf:
            raise InputError(f"{where}: eps={self.eps}, l1={self.l1}; expected finite numbers, eps > 0 and l1 >= 0")
        if not (0 <= self.kappa <= 1 and self.warm_up >= 0 and self.ramp >= 0 and self.warm_up + self.ramp <= 1):
            raise InputError(
                f"{where}: kappa={self.kappa}, warm_up={self.warm_up}, ramp={self.ramp}; expected kappa in [0, 1] and "
                "fractions >= 0 of the steps with a sum of at most 1"
            )

    def box(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Box:
        """Centre and radius (n, ...) of what is propagated for each sample."""
        raise TypeError(f"{type(self).__name__} states no box")

    def progress(self, state: State) -> float:
        """How far the ramp is at this step, from 0 to 1."""
        done = state.step / max(state.total, 1) - self.warm_up
        return min(max(done / self.ramp if self.ramp else float(done >= 0), 0.0), 1.0)

    def margins(
        self, model: nn.Module, center: Float[Tensor, "n ..."], radius: Tensor, y: Int[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """Differentiable lower bounds of z_y - z_j, j != y, over the box."""
        with evaluating(model):
            graph = graph_of(model, center)
        return lower_margins(sweep(graph, model, center, LpBall(eps=radius)), y)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        t = self.progress(state)
        eps, kappa = t * self.eps, 1 - t * (1 - self.kappa)
        total = torch.zeros((), device=batch.x.device)
        if kappa > 0 or _has_batch_norm(model):  # whose statistics come from the clean pass
            total = total + kappa * F.cross_entropy(model(batch.x), batch.y)
        if kappa < 1:
            worst = self.margins(model, *self.box(model, batch, eps, state), batch.y)
            total = total + (1 - kappa) * robust_cross_entropy(worst)
        return total + self.l1 * sum(w.abs().sum() for w in _weights(model)) if self.l1 else total

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        return super().fit(fast_initialised(model, seed=seed) if self.fast_init else model, data, seed=seed, **options)


def robust_cross_entropy(margins: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Mean cross-entropy at the logits (0, -margins): log(1 + sum_j exp(-margin_j))."""
    return F.pad(-margins, (1, 0)).logsumexp(1).mean()


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
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [m.weight for m in model.modules() if isinstance(m, kinds)]


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
