"""QuadAttacK: ordered top-k attacks by quadratic programming in the feature space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.base import AttackResult, Goal
from assay.attacks.linear_head import linear_head, watching
from assay.attacks.ordered_qp import OrderedQP
from assay.attacks.penalty import Energy, PenaltyAttack

Projector = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]


@dataclass(frozen=True, kw_only=True)
class QuadAttack(PenaltyAttack):
    """Features are pulled to the nearest ones with the wanted order (Paniagua et al., 2023, arXiv:2312.11510).

    The penalty is ||z - z*||^2 with z what the linear head is fed and z* its projection onto the features whose logits
    have the order with ``margin`` (section 3, see OrderedQP). The paper differentiates through its solver; the
    gradient of a squared distance to a closed convex set is 2 (z - z*), so z* is held fixed and the gradient is the
    same. ``margin`` is in logits (paper and code: 0.2); with ``relative`` it is a multiple of the standard deviation
    of a sample's own clean logits, so that it does not depend on the logits' scale. ``head`` names the last nn.Linear
    (None: the one called last; that its output is the model's is verified). Ordered goals of k classes; a Targeted
    goal is k = 1, an Untargeted one is led to the runner-up. InputError where the model has no linear head.
    """

    margin: float = 0.2
    relative: bool = False
    head: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.margin) and self.margin > 0):
            self.refuse("margin", self.margin, "a finite number above 0")

    def projector(
        self,
        weight: Float[Tensor, "c d"],
        bias: Float[Tensor, " c"],
        targets: Int[Tensor, "n k"],
        margin: float | Float[Tensor, " n"],
    ) -> Projector:
        """The map from features to what they are pulled to."""
        return OrderedQP(weight, bias, targets, margin).project

    def search(self, model: nn.Module, x: Tensor, goal: Goal, *, seed: int, index: Tensor, **_: Tensor) -> AttackResult:
        found = super().search(model, x, goal, seed=seed, index=index)
        return replace(found, queries=found.queries + 1)  # the pass that finds the head

    @contextmanager
    def energy(self, model: nn.Module, x: Tensor, targets: Tensor, clean: Tensor) -> Iterator[Energy]:
        layer = linear_head(model, x, self.head)
        weight = layer.weight.detach()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        margin = self.margin * clean.detach().double().std(1) if self.relative else self.margin
        nearest = self.projector(weight, bias, targets, margin)
        with watching(model, layer) as watch:

            def look(z: Tensor) -> tuple[Tensor, Tensor]:
                features, logits = watch(z)
                with torch.no_grad():
                    aim = nearest(features.detach()).to(features)
                return (features - aim).square().sum(1), logits

            yield look
