"""NARM: a recurrent network with attention to the items so far."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.recommend.recommender import Recommender, blocked
from assay.runtime.spec import rebuildable


@rebuildable
class NARM(Recommender):
    """A GRU's state beside an attention over its earlier states (Li et al., 2017, arXiv:1711.04725).

    alpha_tj = v sigmoid(A1 h_t + A2 h_j) for j <= t, without softmax; items are scored by a bilinear form of both.
    """

    def __init__(self, n_items: int, length: int = 50, width: int = 48, dropout: float = 0.2) -> None:
        super().__init__(n_items, length, width)
        self.dropout = nn.Dropout(dropout)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.present, self.past = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.weight = nn.Linear(width, 1, bias=False)
        self.bilinear = nn.Linear(2 * width, width, bias=False)

    def states(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        hidden = self._recurrent(rows)
        energy = self.weight((self.present(hidden)[:, :, None] + self.past(hidden)[:, None]).sigmoid())[..., 0]
        unseen = blocked(rows) | (rows == 0)[:, None]
        local = energy.masked_fill(unseen, 0.0) @ hidden
        return self.bilinear(self.dropout(torch.cat((hidden, local), 2)))

    def _recurrent(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """The GRU's states from the first item on: rows are moved to the left for it, and back."""
        length, lead = rows.shape[1], (rows == 0).sum(1, keepdim=True)
        place = torch.arange(length, device=rows.device)[None]
        left = rows.gather(1, (place + lead).clamp_max(length - 1))
        hidden, _ = self.cell(self.dropout(self.items(left)))
        back = (place - lead).clamp_min(0)[..., None].expand(-1, -1, self.width)
        return hidden.gather(1, back)
