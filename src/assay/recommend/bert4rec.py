"""BERT4Rec: self-attention in both directions that fills in masked items."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.recommend.items import prefixes
from assay.recommend.recommender import Recommender, places
from assay.runtime.spec import rebuildable


@rebuildable
class BERT4Rec(Recommender):
    """Transformer without a causal mask; the state after a prefix is that of a mask put behind it.

    Sun et al. (2019, arXiv:1904.06690). Every prefix is a pass of its own. It is trained like the others, for the item
    behind each prefix, and not by masking at random. Shapes: see Recommender.
    """

    def __init__(
        self, n_items: int, length: int = 50, width: int = 48, blocks: int = 2, heads: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__(n_items, length, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Parameter(0.02 * torch.randn(length + 1, width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False)

    def states(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        out = self.items.weight.new_zeros(*rows.shape, self.width)
        return out.masked_scatter((rows > 0)[..., None], self._masked(prefixes(rows)))

    def forward(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n v"]:
        return self.score(self._masked(rows))

    def _masked(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """The state of the mask behind whole rows."""
        asked = torch.cat((rows, torch.ones_like(rows[:, :1])), 1)
        inputs = torch.cat((self.items(rows), self.mask.expand(len(rows), 1, -1)), 1) + self.place[places(asked)]
        return self.body(self.dropout(inputs), src_key_padding_mask=asked == 0)[:, -1]
