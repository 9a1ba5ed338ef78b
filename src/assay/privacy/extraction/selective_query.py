"""Which candidates are worth a query: hard ones, balanced over the predicted classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


def difficulty(probs: Float[Tensor, "p c"]) -> Float[Tensor, " p"]:
    """1 - max_c p_c of the clones' mean prediction."""
    return 1 - probs.amax(1)


@dataclass(frozen=True, kw_only=True)
class SelectiveQuery:
    """``b`` of a pool: of each predicted class the floor(b / K) hardest, then the hardest of what is left.

    K is the number of classes; of a class with fewer candidates all are taken. Ties go to the lower index. Score and
    quota are our reconstruction of the paper's "selective filtering process for querying the victim model with
    harder, more balanced samples" (see CaBaGe).
    """

    def score(self, probs: Float[Tensor, "p c"]) -> Float[Tensor, " p"]:
        """What is preferred within a class, and over all where places are left."""
        return difficulty(probs)

    def select(self, probs: Float[Tensor, "p c"], b: int) -> Int[Tensor, " b"]:
        """The chosen rows of the pool's mean predictions ``probs``, ascending. InputError where the pool is below b."""
        if probs.dim() != 2 or not 1 <= b <= len(probs) or not torch.isfinite(probs).all():
            raise InputError(
                f"selective query: {b} of a pool {tuple(probs.shape)}; expected finite (p, c) with p >= b >= 1"
            )
        order = self.score(probs).argsort(descending=True, stable=True)
        classes = F.one_hot(probs.argmax(1), probs.shape[1])[order]
        rank = (classes.cumsum(0) * classes).sum(1) - 1
        first = rank < b // probs.shape[1]
        return order[(~first).to(torch.uint8).argsort(stable=True)][:b].sort().values
