"""The contrastive loss without a softmax: all negatives weigh alike."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from assay.losses.contrastive import ContrastiveLoss, Negatives, check_quantile, hardest
from assay.runtime.errors import InputError


class SimpleContrastive(ContrastiveLoss):
    """L_i = - s_ii + ``lam`` sum_k s_ik (Wang & Liu, 2021, arXiv:2012.09740), where hardness has no part.

    It is what InfoNCE tends to, up to scale and offset, as its temperature grows. With ``quantile`` in (0, 1] the sum
    is over that share of the hardest negatives, the "HardSimple" of the paper. ``lam`` >= 0. The rest as
    ContrastiveLoss.
    """

    def __init__(
        self,
        lam: float = 1.0,
        quantile: float | None = None,
        negatives: Negatives = "batch",
        symmetric: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__(negatives, symmetric, normalize)
        if not 0 <= lam < math.inf:
            raise InputError(f"SimpleContrastive: lam={lam}; expected a finite number >= 0")
        if quantile is not None:
            check_quantile("SimpleContrastive", quantile)
        self.lam, self.quantile = float(lam), quantile

    def of_scores(self, positive: Float[Tensor, " n"], negative: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        kept = negative if self.quantile is None else hardest(negative, self.quantile)
        return self.lam * kept.sum(1) - positive
