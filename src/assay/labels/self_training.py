"""Self-training on the labelled solution's own decisions."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.labels.rss import RobustSelfSupervised


@dataclass(frozen=True, kw_only=True)
class SelfTraining(RobustSelfSupervised):
    """Cross-entropy on the labels + ``lam`` x cross-entropy on the pool's pseudo-labels (Scudder, 1965; Lee, 2013).

    The pseudo-labels are the hard decisions of the start, once and for all: RobustSelfSupervised without its robust
    term, from the same start in the same steps. ``gamma``, ``gamma_u`` and the inner steps have no use here.
    """

    lam: float = 1.0

    def guess(self, model: nn.Module, batch: Batch) -> Int[Tensor, " b"]:
        return batch.y

    def phi(self, model: nn.Module, x: Tensor, y: Int[Tensor, " n"], gamma: float) -> Float[Tensor, " n"]:
        return F.cross_entropy(model(x), y, reduction="none")
