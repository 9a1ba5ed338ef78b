"""The probabilistic interaction sampler: which item of a list a user would take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.recommend.items import contained
from assay.recommend.recommender import Recommender, blocked, places
from assay.runtime.errors import InputError


class ProbabilisticInteractionSampler(Recommender):
    """p_j ~ softmax_list(u . e_j) (r_j + floor) for the items j of a list (Zhang and Liu, 2024, arXiv:2411.11677).

    e_j is the item's embedding beside that of its ``meta`` (n_items + 1, g); u the state of one causal self-attention
    over the prefix (e_j and places); r_j in [0, 1] the normalised rating of the item (see normalised_ratings). As a
    Recommender it scores all items by u . e_j, and it is trained for the next item. Sizes are a reconstruction.
    """

    def __init__(
        self,
        n_items: int,
        length: int = 50,
        width: int = 32,
        heads: int = 2,
        meta: Float[Tensor, "v g"] | None = None,
        floor: float = 0.1,
    ) -> None:
        meta = torch.zeros(n_items + 1, 1) if meta is None else meta
        if meta.dim() != 2 or len(meta) != n_items + 1 or floor < 0:
            shape = f"meta {tuple(meta.shape)}, floor {floor}"
            raise InputError(f"interaction sampler: {shape}; expected meta ({n_items + 1}, g) and floor >= 0")
        super().__init__(n_items, length, width)
        self.floor = floor
        self.meta: Tensor
        self.register_buffer("meta", meta.float())
        self.describe = nn.Linear(meta.shape[1], width, bias=False)
        self.place = nn.Parameter(0.02 * torch.randn(length, 2 * width))
        self.heads = heads
        self.attention = nn.MultiheadAttention(2 * width, heads, batch_first=True)
        self.norm = nn.LayerNorm(2 * width)

    def table(self) -> Float[Tensor, "v e"]:
        """e_j of every item: its embedding and that of its metadata."""
        return torch.cat((self.items.weight, self.describe(self.meta)), 1)

    def states(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n l e"]:
        inputs = self.table()[rows] + self.place[places(rows)]
        mask = blocked(rows).repeat_interleave(self.heads, 0)
        mixed, _ = self.attention(inputs, inputs, inputs, attn_mask=mask, need_weights=False)
        return self.norm(inputs + mixed)

    def score(self, states: Float[Tensor, "*n e"]) -> Float[Tensor, "*n v"]:
        return states @ self.table().T + self.bias

    def probabilities(
        self, rows: Int[Tensor, "n l"], lists: Int[Tensor, "n k"], ratings: Float[Tensor, " v"]
    ) -> Float[Tensor, "n k"]:
        """The probability of each item of the lists, 0 for those that the row has already."""
        attention = self(rows).gather(1, lists).softmax(1)
        weight = (attention * (ratings[lists] + self.floor)).masked_fill(contained(lists, rows), 0.0)
        return weight / weight.sum(1, keepdim=True).clamp_min(1e-12)


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
