"""The loss of list distillation: a victim's order, and its list above what is not on it."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError


class ListRankingLoss(nn.Module):
    """mean max(0, s_(m+1) - s_m + margin_topk) + mean max(0, s_neg - s_m + margin_neg) over a victim's list.

    Yue et al. (2021, arXiv:2109.01165), the ranking loss of their code, margins 0.5. ``loss(scores (n, v), lists
    (n, k), negatives (n, k)) -> scalar``: s_m is the score of the list's m-th item, s_neg that of an item outside.
    A list of one item has no order: the first term is 0.
    """

    kind: ClassVar[str] = "function"

    def __init__(self, margin_topk: float = 0.5, margin_neg: float = 0.5) -> None:
        super().__init__()
        if margin_topk < 0 or margin_neg < 0:
            raise InputError(f"ListRankingLoss: margins {margin_topk}, {margin_neg}; expected numbers >= 0")
        self.margin_topk, self.margin_neg = margin_topk, margin_neg

    def forward(
        self, scores: Float[Tensor, "n v"], lists: Int[Tensor, "n k"], negatives: Int[Tensor, "n k"]
    ) -> Float[Tensor, ""]:
        listed, others = scores.gather(1, lists), scores.gather(1, negatives)
        gaps = (listed.diff(dim=1) + self.margin_topk).clamp_min(0)
        order = gaps.mean() if gaps.numel() else gaps.sum()
        return order + (others - listed + self.margin_neg).clamp_min(0).mean()


def outside(lists: Int[Tensor, "n k"], ranks: Int[Tensor, "n m"]) -> Int[Tensor, "n m"]:
    """The items with the given ranks, 0 on, among those (from 1) that are not on each row's list."""
    ordered = lists.sort(1).values
    before = ordered - 1 - torch.arange(lists.shape[1], device=lists.device)  # items outside that come before each
    return ranks + 1 + torch.searchsorted(before, ranks, right=True)
