"""Adversarial training with one attack step: FGSM, from the sample, from a random point, or from noise that stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.balls import Bounds
from assay.data import Batch
from assay.dynamics import AAEMonitor
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng
from assay.training import State, Trainer

INITS = ("zero", "rs", "nfgsm")


@dataclass(frozen=True)
class Step:
    """One attack step: logits at its start and the slope of the loss there, without a gradient; logits at its end."""

    before: Float[Tensor, "n c"]
    slope: Float[Tensor, "n ..."]
    after: Float[Tensor, "n c"]


@dataclass(frozen=True, kw_only=True)
class SingleStepAT(Trainer):
    """Minimise the cross-entropy at x + delta, delta = eta + ``step`` eps sign(gradient at x + eta).

    ``init`` "zero": eta = 0, FGSM (Goodfellow et al., 2015, arXiv:1412.6572). "rs": eta ~ U(-eps, eps), delta cut to
    eps, FGSM-RS (Wong et al., 2020, arXiv:2001.03994, algorithm 3). "nfgsm": eta ~ U(-2 eps, 2 eps), delta not cut,
    N-FGSM (de Jorge et al., 2022, arXiv:2202.01181, algorithm 1). ``step`` is in units of eps, None for the published
    one: 1, 1.25 and 1; ``clamp`` None cuts all but N-FGSM's. The step (and the cut) grow linearly over the first
    ``warmup_epochs``, as in the script of Lin et al. (2023, arXiv:2404.08154). x + eta and x + delta stay in the bounds
    of the data; ``eps`` is a radius in the l-infinity norm, in their units. Both passes run in training mode. Each
    step's ``AAEMonitor.measure`` goes into the run's log. A training step costs two forward and two backward passes. It
    can collapse: accuracy under FGSM rises and under PGD vanishes (see dynamics.overfits_catastrophically). Raises
    InputError for options out of range.
    """

    contract: ClassVar[bool] = False

    eps: float = 8 / 255
    init: Literal["zero", "rs", "nfgsm"] = "nfgsm"
    step: float | None = None
    clamp: bool | None = None
    warmup_epochs: float = 5

    def __post_init__(self) -> None:
        where = type(self).__name__
        if self.init not in INITS:
            raise unknown(f"init of {where}", str(self.init), INITS)
        usable = 0 < self.eps < math.inf and (self.step is None or 0 < self.step < math.inf)
        if not usable or not 0 <= self.warmup_epochs < math.inf:
            given = f"eps={self.eps}, step={self.step}, warmup_epochs={self.warmup_epochs}"
            raise InputError(f"{where}: {given}; expected eps and step above 0, warmup_epochs of at least 0")

    def warm(self, state: State) -> float:
        """The fraction of the full step that is taken now."""
        per_epoch = -(-len(state.data) // self.batch_size)
        return min(state.step / (per_epoch * self.warmup_epochs), 1.0) if self.warmup_epochs else 1.0

    def start(self, x: Float[Tensor, "n ..."], state: State) -> Float[Tensor, "n ..."]:
        """x + eta, in the bounds."""
        if self.init == "zero":
            return x.clone()
        radius = self.eps * (2 if self.init == "nfgsm" else 1)
        generator = torch_rng(state.seed, "start", state.step, device=x.device)
        return torch.empty_like(x).uniform_(-radius, radius, generator=generator).add_(x).clamp_(*state.data.bounds)

    def climb(
        self,
        x: Float[Tensor, "n ..."],
        start: Float[Tensor, "n ..."],
        slope: Float[Tensor, "n ..."],
        warm: float,
        bounds: Bounds,
    ) -> Float[Tensor, "n ..."]:
        """x + delta: the step from ``start``, cut to the radius where it is, and to the bounds."""
        size = (1.25 if self.init == "rs" else 1.0) if self.step is None else self.step
        z = torch.add(start, slope.sign(), alpha=size * self.eps * warm)
        if self.clamp or (self.clamp is None and self.init != "nfgsm"):
            z = (z - x).clamp_(-self.eps * warm, self.eps * warm).add_(x)
        return z.clamp_(*bounds)

    def outer(self, model: nn.Module, batch: Batch, state: State, step: Step) -> Float[Tensor, ""]:
        """The loss, once the step has been taken."""
        return F.cross_entropy(step.after, batch.y)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        start = self.start(batch.x, state).requires_grad_()
        before = model(start)
        (slope,) = torch.autograd.grad(F.cross_entropy(before, batch.y), start)
        x_adv = self.climb(batch.x, start.detach(), slope, self.warm(state), state.data.bounds)
        step = Step(before.detach(), slope, model(x_adv))
        state.log.append({"step": state.step, **AAEMonitor.measure(step.after, batch.y, step.before)})
        return self.outer(model, batch, state, step)
