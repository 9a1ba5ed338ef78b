"""FlexMatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.labels.fixmatch import FixMatch
from assay.labels.semi_supervised import Unlabelled
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class FlexMatch(FixMatch):
    """FixMatch with a threshold for each class, lower where it is learnt less (Zhang et al., 2021, arXiv:2110.08263,
    eq. 5-12, "curriculum pseudo labeling").

    sigma(c) is the number of unlabelled samples whose latest prediction of probability ``tau`` or more is class c, and
    beta(c) = sigma(c) / max(max sigma, number without any such prediction) (without the latter for ``warmup=False``).
    The threshold is M(beta(c)) tau with the convex M(x) = x / (2 - x), as it stands before this batch. Memory: one
    integer a sample. Options as FixMatch.
    """

    warmup: bool = True

    def status(self, latest: Tensor, classes: int) -> Float[Tensor, " c"]:
        """beta of the latest certain predictions (n,), -1 where there is none."""
        counts = torch.bincount(latest + 1, minlength=classes + 1)
        sigma = counts[1:]
        most = counts.max() if self.warmup else sigma.max()
        return sigma / most.clamp_min(1)

    def certain(self, q: Float[Tensor, "b c"], unlabelled: Unlabelled, state: State) -> Bool[Tensor, " b"]:
        none = torch.full((unlabelled.pool,), -1, dtype=torch.int64, device=q.device)
        latest = state.memory.setdefault("flexmatch", none)
        beta = self.status(latest, q.shape[1])
        highest, label = q.max(1)
        sure = highest >= self.tau
        latest[unlabelled.rows[sure]] = label[sure]
        return highest >= self.tau * (beta / (2 - beta))[label]
