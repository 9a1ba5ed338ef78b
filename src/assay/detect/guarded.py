"""A model that refuses what its detector flags, and the attack on both at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks import PGD, AttackResult, Ball, Square
from assay.attacks.base import Goal
from assay.data import Data
from assay.detect.base import FittedDetector
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import evaluating

WEIGHTS = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Unnoticed(Goal):
    """Any class but ``y`` (n,) that is not refused; the last of the outputs' columns (n, c + 1) is the refusal."""

    y: Int[Tensor, " n"]

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        if outputs.dim() == 1:
            raise AccessError("an attack on model and detector needs SCORE access; the oracle grants DECISION")
        decision = outputs.argmax(1)
        return (decision != self.y) & (decision != outputs.shape[1] - 1)

    def margin(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        others, guarded = self._split(logits)
        return others.amax(1) - guarded.amax(1)

    def likelihood(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        others, guarded = self._split(logits)
        return others.logsumexp(1) - guarded.logsumexp(1)

    def _split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of what is sought, the rest at minus infinity, and those of y and of the refusal (n, 2)."""
        held = torch.stack((self.y, torch.full_like(self.y, logits.shape[1] - 1)), 1)
        return logits.scatter(1, held, float("-inf")), logits.gather(1, held)


class Guarded(nn.Module):
    """The model's logits (n, c) and the refusal max_c f_c(x) + ``weight`` (s(x) - threshold) / spread, (n, c + 1).

    The refusal is the largest where the detector's score s is above the threshold that refuses ``fpr`` of the reference
    (Carlini and Wagner, 2017, arXiv:1705.07263, section 3.3, with a sum in place of their product, as logits may be
    negative). ``spread`` is the standard deviation of the reference scores; ``weight`` > 0 says how much an attack
    heeds the detector and moves no decision.
    """

    def __init__(self, model: nn.Module, fitted: FittedDetector, *, fpr: float = 0.05, weight: float = 1.0) -> None:
        super().__init__()
        if not weight > 0:
            raise InputError(f"Guarded: weight is {weight}; expected above 0")
        self.model, self.fitted, self.weight = model, fitted, weight
        self.threshold = fitted.threshold(fpr)
        self.spread = max(float(fitted.reference_.std()), 1e-12)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """Logits and refusal, the detector's networks in evaluation mode; slopes of both where ``x`` asks for them."""
        logits = self.model(x)
        follows = torch.is_grad_enabled() and x.requires_grad
        with evaluating(self.fitted.networks):
            score = self.fitted.graph(x) if follows else self.fitted.scores(x)
        above = (self.weight * (score - self.threshold) / self.spread).to(logits)
        return torch.cat((logits, (logits.amax(1) + above)[:, None]), 1)


def has_gradient(fitted: FittedDetector) -> bool:
    """Whether the detector states how its score moves with the input."""
    return type(fitted).graph is not FittedDetector.graph


def evade(
    model: nn.Module,
    fitted: FittedDetector,
    data: Data,
    ball: Ball,
    *,
    seed: int,
    fpr: float = 0.05,
    steps: int = 40,
    weights: Sequence[float] = WEIGHTS,
    queries: int = 500,
    start: Float[Tensor, "n ..."] | None = None,
) -> AttackResult:
    """Inputs in ``ball`` that the model misreads and its detector, at ``fpr``, lets through.

    PGD on the joint margin, once for each of ``weights`` on the samples that still hold, the first time from ``start``
    where it is given; where the detector has no gradient, Square with ``queries`` of the joint margin. ``success`` is
    a wrong class that is not refused.
    """
    goal = Unnoticed(data.y)
    if not has_gradient(fitted):
        attack = Square(ball=ball, bounds=data.bounds, budget=queries)
        return attack.run(Guarded(model, fitted, fpr=fpr), data.x, goal, seed=seed, index=data.index)
    climb = PGD(ball=ball, bounds=data.bounds, steps=steps, loss="margin")
    found = climb.run(
        Guarded(model, fitted, fpr=fpr, weight=weights[0]), data.x, goal, seed=seed, index=data.index, start=start
    )
    for weight in weights[1:]:
        rows = (~found.success).nonzero()[:, 0]
        if not len(rows):
            break
        guarded = Guarded(model, fitted, fpr=fpr, weight=weight)
        part = climb.run(guarded, data.x[rows], goal.select(rows), seed=seed, index=data.index[rows])
        found = _merged(found, part, rows)
    return found


def _merged(found: AttackResult, part: AttackResult, rows: Tensor) -> AttackResult:
    """``found`` with what a further run on ``rows`` gave; passes are added."""
    columns = {}
    for name in ("x_adv", "success", "distance"):
        columns[name] = getattr(found, name).clone()
        columns[name][rows] = getattr(part, name)
    for name in ("queries", "gradients"):
        columns[name] = getattr(found, name).clone().index_add_(0, rows, getattr(part, name))
    return replace(found, **columns)
