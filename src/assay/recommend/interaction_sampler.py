"""The probabilistic interaction sampler: which item of a list a user would take."""

from __future__ import annotations

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
