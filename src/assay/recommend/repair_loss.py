"""Bidirectional repair: items that a surrogate's list lacks are raised, those that it should not have are lowered."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.recommend.items import contained, top_items
from assay.runtime.errors import InputError, unknown

FORMS = ("pair", "threshold")
Sets = tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]


class BidirectionalRepairLoss(nn.Module):
    """The repair of a surrogate's first K items towards a victim's (Zhang and Liu, 2024, arXiv:2411.11677).

    ``loss(scores (n, v), lists (n, >= K)) -> scalar``, the mean over rows; ``per_row`` gives (n,). V is the victim's
    list, G the K items of the highest scores (item 0 is padding); M = V \\ G is missing, W = G \\ V is wrong, and both
    are equally many. "pair": the mean over M x W of max(0, s_w - s_m + margin): 0 where V = G as sets, else at least
    the margin. "threshold": mean_M max(0, t - s_m + margin) + mean_W max(0, s_w - t' + margin) with t the K-th score
    and t' the lowest of V and G in common (t where there is none), both constants. They are related, not equal. As
    every w scores at least every m, all pairs count, and the margin does not change the pair form's gradient. The
    paper's text was not at hand: both are reconstructions from summaries, and the margin is that of the ranking loss.
    """

    kind: ClassVar[str] = "function"

    def __init__(self, margin: float = 0.5, K: int = 10, form: Literal["pair", "threshold"] = "pair") -> None:
        super().__init__()
        if margin < 0 or K < 1:
            raise InputError(f"BidirectionalRepairLoss: margin {margin}, K {K}; expected margin >= 0 and K >= 1")
        if form not in FORMS:
            raise unknown("form of BidirectionalRepairLoss", str(form), FORMS)
        self.margin, self.K, self.form = margin, K, form

    def sets(self, scores: Float[Tensor, "n v"], lists: Int[Tensor, "n K"]) -> tuple[Sets, Sets]:
        """(victim's K items, which are missing) and (surrogate's K items, which are wrong)."""
        own = top_items(scores.detach(), self.K)
        return (lists, ~contained(lists, own)), (own, ~contained(own, lists))

    def per_row(self, scores: Float[Tensor, "n v"], lists: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if scores.dim() != 2 or lists.dim() != 2 or len(scores) != len(lists) or lists.shape[1] < self.K:
            shapes = f"scores {tuple(scores.shape)}, lists {tuple(lists.shape)}"
            raise InputError(f"BidirectionalRepairLoss: {shapes}; expected (n, v) and (n, >= {self.K})")
        (first, missing), (second, wrong) = self.sets(scores, lists[:, : self.K])
        up, down = scores.gather(1, first), scores.gather(1, second)
        if self.form == "pair":
            gaps = (down[:, None] - up[:, :, None] + self.margin).clamp_min(0)
            return _mean(gaps.flatten(1), (missing[:, :, None] & wrong[:, None]).flatten(1))
        low, common = self._thresholds(scores.detach(), lists[:, : self.K])
        raised = (low[:, None] - up + self.margin).clamp_min(0)
        return _mean(raised, missing) + _mean((down - common[:, None] + self.margin).clamp_min(0), wrong)

    def forward(self, scores: Float[Tensor, "n v"], lists: Int[Tensor, "n k"]) -> Float[Tensor, ""]:
        return self.per_row(scores, lists).mean()

    def _thresholds(self, scores: Tensor, lists: Tensor) -> tuple[Tensor, Tensor]:
        own = top_items(scores, self.K)
        best, shared = scores.gather(1, own), contained(own, lists)
        low = best.amin(1)
        return low, torch.where(shared.any(1), best.masked_fill(~shared, torch.inf).amin(1), low)


def _mean(values: Float[Tensor, "n m"], where: Bool[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """The mean of each row's marked values, 0 where there is none."""
    return torch.where(where, values, 0.0).sum(1) / where.sum(1).clamp_min(1)
