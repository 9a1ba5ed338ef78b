"""DONE: adversarial training that is robust to how its samples are weighted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch
from assay.defenses.base import AdversarialTrainer
from assay.defenses.bilevel_at import Bounds, cross_entropies, implicit_hypergradient, log_barrier_attack
from assay.losses.kl_dro import dro_weights, log_mean_exp, tracked
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class DONE(AdversarialTrainer):
    """min over theta of max over w of sum w_i l_i(theta, d_i*) - r KL(w || uniform), d_i* the minimiser of the
    attacker's loss with a log barrier (Sow et al., 2024, arXiv:2308.00311, eq. 5-7 and algorithm 1).

    The inner maximum is r log u, u = mean exp(l_i / r): a batch of losses moves u by ``eta`` (the first ``warmup``
    steps set it), each sample's hypergradient counts exp(l_i / r) / u, and through d* it carries the implicit term of
    implicit_hypergradient, left out where ``implicit`` is False. ``eta`` = 1 is a softmax over the batch. ``r``: large
    is uniform adversarial training, small the worst sample. ``c``: the barrier. Linf only. "adam" is DONE-ADAM, "sgd"
    with no momentum DONE-GD. ``state.log`` holds under "log_u" the logarithm of u, and under "largest" the largest
    weight of a batch of n times n. InputError for r <= 0, eta outside (0, 1], c <= 0, and norm "l2". The update of u
    and c, eta, r are reconstructed: the paper's values are not known here.
    """

    contract: ClassVar[bool] = False

    norm: Literal["linf", "l2"] = "linf"
    attack_steps: int = 10
    r: float = 1.0
    c: float = 5e-3
    eta: float = 0.5
    implicit: bool = True
    warmup: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "linf" or not (0 < self.r < math.inf and 0 < self.eta <= 1 and 0 < self.c < math.inf):
            given = f"norm={self.norm!r}, r={self.r}, eta={self.eta}, c={self.c}"
            raise InputError(f"DONE: {given}; expected linf, r > 0, eta in (0, 1], c > 0")
        if self.warmup < 0:
            raise InputError(f"DONE: warmup={self.warmup}; expected at least 0")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, ""]:
        x, y, bounds = batch.x, batch.y, state.data.bounds
        seed = derive(state.seed, state.step)
        size, index = self.step_size, batch.index
        delta = log_barrier_attack(
            model, x, y, self.eps, self.c, self.attack_steps, size, bounds=bounds, index=index, seed=seed
        )
        losses, surrogate = self.surrogates(model, batch, delta, bounds)
        return (self.factors(losses, state) * surrogate).mean()

    def surrogates(
        self, model: nn.Module, batch: Batch, delta: Tensor, bounds: Bounds
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The losses, and what has their hypergradients as gradient."""
        if self.implicit:
            return implicit_hypergradient(model, batch.x, batch.y, delta, self.c, eps=self.eps, bounds=bounds)
        each = cross_entropies(model(batch.x + delta), batch.y)
        return each.detach(), each

    def factors(self, losses: Float[Tensor, " n"], state: State) -> Float[Tensor, " n"]:
        """exp(l_i / r) / u after u has moved."""
        eta = 1.0 if state.step < self.warmup else self.eta
        log_u = tracked(state.memory.get("done/log_u", losses.new_tensor(math.nan)), losses, self.r, eta)
        state.memory["done/log_u"] = log_u
        weights = len(losses) * self.weights(losses)
        state.log.append({"step": state.step, "log_u": float(log_u), "largest": float(weights.max())})
        return weights * (log_mean_exp(losses, self.r) - log_u).exp()

    def weights(self, losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weights that maximise the inner problem over the batch."""
        return dro_weights(losses, self.r)
