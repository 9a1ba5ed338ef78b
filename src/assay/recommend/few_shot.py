"""What an attacker counts in a few real sequences: how often items come, what follows what, and how they are rated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """What the attacker counts in the few sequences: items seen (v,), transitions (v, v), and ratings r in [0, 1]."""

    seen: Float[Tensor, " v"]
    follows: Float[Tensor, "v v"]
    ratings: Float[Tensor, " v"]

    def pool(self, last: Int[Tensor, " n"], spread: float = 1.0) -> Float[Tensor, "n v"]:
        """Probabilities of the next item: transitions from ``last``, and ``spread`` more counts by popularity."""
        share = (self.seen + 1e-3) / (self.seen + 1e-3)[1:].sum()
        share = share.index_fill(0, torch.zeros(1, dtype=torch.int64), 0.0)
        counts = self.follows[last] + spread * share
        return counts / counts.sum(1, keepdim=True)


def few_shot_counts(
    sequences: list[Int[Tensor, " t"]], n_items: int, ratings: list[Float[Tensor, " t"]] | None = None
) -> FewShot:
    """Counts over the sequences; r_j is the rating's mean, shrunk, or the popularity where there are no ratings."""
    items = torch.cat(sequences)
    seen = torch.bincount(items, minlength=n_items + 1).float()
    follows = torch.zeros(n_items + 1, n_items + 1)
    pairs = torch.cat([torch.stack((s[:-1], s[1:])) for s in sequences], 1)
    follows.index_put_((pairs[0], pairs[1]), torch.ones(pairs.shape[1]), accumulate=True)
    prior = seen / seen.max() if ratings is None else normalised_ratings(items, torch.cat(ratings), n_items)
    return FewShot(seen=seen, follows=follows, ratings=prior)


def normalised_ratings(
    items: Int[Tensor, " m"], ratings: Float[Tensor, " m"], n_items: int, shrinkage: float = 5.0
) -> Float[Tensor, " v"]:
    """Each item's mean rating, drawn to the mean of all as if it had ``shrinkage`` more such ratings; over the largest.

    Ratings are numbers >= 0; items without one have the mean of all. Raises InputError for others.
    """
    if items.shape != ratings.shape or not torch.isfinite(ratings).all() or ratings.min() < 0:
        raise InputError(
            f"ratings: {tuple(ratings.shape)} for {len(items)} items; expected one finite number >= 0 each"
        )
    total = torch.zeros(n_items + 1).index_add_(0, items, ratings.float())
    count = torch.bincount(items, minlength=n_items + 1).float()
    mean = (total + shrinkage * ratings.float().mean()) / (count + shrinkage)
    return mean / mean.max().clamp_min(1e-12)
