"""SASRec: self-attention over the items so far."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.recommend.recommender import Recommender, blocked, places
from assay.runtime.spec import rebuildable


@rebuildable
class SASRec(Recommender):
    """Causal transformer over item and place embeddings (Kang and McAuley, 2018, arXiv:1808.09781).

    Layers are normalised first, with GELU; places count from the first item of the row. Shapes: see Recommender.
    """

    def __init__(
        self, n_items: int, length: int = 50, width: int = 48, blocks: int = 2, heads: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__(n_items, length, width)
        self.heads = heads
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False)

    def states(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        inputs = self.dropout(self.items(rows) + self.place[places(rows)])
        return self.body(inputs, mask=blocked(rows).repeat_interleave(self.heads, 0))
