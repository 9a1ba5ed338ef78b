"""Adversarial distillation: ordered top-k targets as a distribution to be matched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.attacks.penalty import PenaltyAttack
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class AdversarialDistillation(PenaltyAttack):
    """The penalty is KL(P || softmax(logits)) (Zhang and Wu, 2020, arXiv:2007.12684).

    P is the softmax of: ``alpha`` - ``beta`` (i - 1) at the i-th target, and at every other class its mean similarity
    to the targets. ``similarity`` (c, c) holds the similarities of the classes (the paper: cosines of their names'
    GloVe vectors); None takes them as 0. Shapes, the loop and errors: see PenaltyAttack.
    """

    alpha: float = 10.0
    beta: float = 0.3
    similarity: Float[Tensor, "c c"] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.alpha) and math.isfinite(self.beta) and self.beta > 0):
            self.refuse("alpha, beta", (self.alpha, self.beta), "finite numbers with beta > 0")

    def distribution(self, targets: Int[Tensor, "n k"], classes: int) -> Float[Tensor, "n c"]:
        """The distribution P for each row of ``targets``, float64."""
        n, k = targets.shape
        scores = torch.zeros(n, classes, dtype=torch.float64, device=targets.device)
        if self.similarity is not None:
            if self.similarity.shape != (classes, classes):
                shape = tuple(self.similarity.shape)
                raise InputError(
                    f"AdversarialDistillation: similarity has shape {shape}; expected ({classes}, {classes})"
                )
            scores = self.similarity.to(scores)[targets].mean(1)
        wanted = self.alpha - self.beta * torch.arange(k, dtype=scores.dtype, device=scores.device)
        return scores.scatter(1, targets, wanted.expand(n, k)).softmax(1)

    def penalty(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        aim = self.distribution(targets, logits.shape[1]).to(logits)
        return F.kl_div(logits.log_softmax(1), aim, reduction="none").sum(1)
