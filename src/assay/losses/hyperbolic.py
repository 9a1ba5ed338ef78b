"""Losses on points of the Poincare ball."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.nets.poincare import HyperbolicMLR, check_curvature, check_points, dist, mobius_add
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class HypPairwiseConfusion(nn.Module):
    """The mean distance in the ball between sample i and sample i + n / 2 (Narayan et al., 2024, arXiv:2404.14406).

    It draws embeddings of the real class together, whoever is on them. ``emb`` (n, d) in the ball of curvature -c, n
    even. ``reference`` repeats the official code: (2 / sqrt(c)) arctan in place of artanh, which bounds the pull, and
    the sum over n in place of n / 2; for near pairs it is half the loss, up to third order. Returns a scalar >= 0, or
    (n / 2,) under ``reduction="none"``. Raises InputError for an odd n, points outside the ball, c not above 0.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self, c: float = 0.1, reduction: Literal["mean", "sum", "none"] = "mean", reference: bool = False
    ) -> None:
        super().__init__()
        check_curvature(c)
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"HypPairwiseConfusion: reduction={reduction!r}; expected mean, sum or none")
        self.c, self.reduction, self.reference = c, reduction, reference

    def distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The distance of a pair."""
        if not self.reference:
            return dist(x, y, self.c)
        root = self.c**0.5
        return 2 / root * torch.atan(root * mobius_add(-x, y, self.c).norm(dim=1).clamp(min=1e-15))

    def forward(self, emb: Float[Tensor, "n d"]) -> Float[Tensor, ...]:
        check_points("HypPairwiseConfusion", emb, self.c)
        if emb.dim() != 2 or len(emb) % 2:
            raise InputError(f"HypPairwiseConfusion: embeddings {tuple(emb.shape)}; expected (n, d) with n even")
        each = self.distance(*emb.chunk(2))
        if self.reduction == "none":
            return each
        return each.sum() if self.reduction == "sum" else each.mean() / (2 if self.reference else 1)


class HypCrossEntropy(nn.Module):
    """Softmax cross-entropy of a HyperbolicMLR's logits, in nats; ``emb`` (n, d) in its ball, ``target`` (n,) int64."""

    kind: ClassVar[str] = "function"

    def __init__(self, mlr: HyperbolicMLR) -> None:
        super().__init__()
        self.mlr = mlr

    def forward(self, emb: Float[Tensor, "n d"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        check_points("HypCrossEntropy", emb, self.mlr.c)
        check_labels("HypCrossEntropy", target, len(emb), len(self.mlr.point))
        return F.cross_entropy(self.mlr(emb), target)
