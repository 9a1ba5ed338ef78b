"""Several surrogates attacked as one: what attacks that transfer from an ensemble share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Ball, Linf
from assay.attacks.base import AttackResult, Goal, Model, Targeted, Untargeted
from assay.attacks.engine import Climb
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.surrogates.base import Surrogates
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of

Sources = Model | Sequence[nn.Module]


class Ensemble(Surrogates):
    """Models (n, ...) -> (n, c) as one, whose logits are the mean of theirs; they may live on different devices.

    ``mean=False`` sums them, as the official code of Chen et al. (2023, arXiv:2303.09105) does: the same decisions at
    another temperature. InputError where there is no model, where one is no module, or, when called, where their
    outputs differ in shape.
    """

    def __init__(self, models: Sequence[nn.Module], *, mean: bool = True) -> None:
        for k, model in enumerate(models):
            if not isinstance(model, nn.Module):
                raise InputError(f"Ensemble: model {k} is {type(model).__name__}; expected a torch module")
        super().__init__(models)
        self.mean = mean

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        outputs = [member(x) for member in members(self)]
        if len({o.shape for o in outputs}) > 1:
            shapes = ", ".join(str(tuple(o.shape)) for o in outputs)
            raise InputError(f"Ensemble: the models give shapes {shapes}; expected the same of all")
        total = torch.stack(outputs).sum(0)
        return total / len(outputs) if self.mean else total


class Member(nn.Module):
    """One model of an ensemble, called with inputs on any device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.model(x.to(device_of(self.model))).to(x.device)


def members(model: nn.Module) -> list[nn.Module]:
    """The models of an ensemble, in order; a model that is none is its own only member."""
    return [Member(m) for m in model.samples] if isinstance(model, Surrogates) else [model]


@dataclass(frozen=True, kw_only=True)
class EnsembleAttack(MIFGSM):
    """MIFGSM from several surrogates: ``attack(models, x, y, seed=0)``, with a sequence of models, an ``Ensemble``,
    ``Surrogates`` or one model.

    Steps are eps / 5 long. ``reverse_step`` is a length as a fraction of eps: a step down the gradient of the ensemble
    before the gradients that count, cut to the ball (0: none). What is climbed is the cross-entropy, or
    ``loss_fn(outputs, goal) -> (n,)`` where given, for surrogates whose outputs are no logits; with a goal that names
    a class to reach, its log-likelihood. A pass through one member counts as a query, as does one through all of them.
    Further shapes, ranges and errors: see Attack; options: see MIFGSM; eps must be above 0.
    """

    contract: ClassVar[bool] = True

    ball: Ball = Linf(16 / 255)
    reverse_step: float = 0.0
    loss_fn: Callable[[Tensor, Goal], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ball.eps > 0:
            self.refuse("eps", self.ball.eps, "a radius above 0")
        if not 0 <= self.reverse_step <= 1:
            self.refuse("reverse_step", self.reverse_step, "a fraction of eps in [0, 1]")

    def __call__(self, model: Sources, x: Tensor, y: Tensor, *, seed: int, index: Tensor | None = None) -> Tensor:
        return super().__call__(self._joined(model), x, y, seed=seed, index=index)

    def run(
        self,
        model: Sources,
        x: Tensor,
        goal: Goal,
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
        batch_size: int = BATCH,
        start: Tensor | None = None,
    ) -> AttackResult:
        model = self._joined(model)
        return super().run(model, x, goal, seed=seed, index=index, batch_size=batch_size, start=start)

    @staticmethod
    def _joined(model: Sources) -> Model:
        return Ensemble(model) if isinstance(model, Sequence) else model

    def length(self, step: int) -> float:
        return self.ball.eps / 5 if self.step_size is None else super().length(step)

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        if self.loss_fn is not None:
            return self.loss_fn(logits, goal)
        level = super().objective(logits, goal)
        # Of the log-odds: cross-entropies whose gradients survive where the softmax rounds to 0 or 1.
        if self.loss == "ce" and isinstance(goal, Untargeted):
            return F.softplus(level)
        return -F.softplus(-level) if self.loss == "ce" and isinstance(goal, Targeted) else level

    def behind(self, run: Climb) -> Float[Tensor, "n ..."]:
        """The points a reverse step away: down the ensemble's gradient, ``run.grad``, cut to the ball."""
        if not self.reverse_step:
            return run.z
        back = self.reverse_step * self.ball.eps * self.ball.ascent(run.grad, run.z, self.bounds)
        return self.ball.project(run.z - back, run.x, self.bounds)
