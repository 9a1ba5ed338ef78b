"""The softmax contrastive loss on the hardest negatives alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from assay.losses.contrastive import InfoNCE, Negatives, check_quantile, hardest


class HardContrastive(InfoNCE):
    """InfoNCE whose negatives are those with s_ik >= s_i^(alpha), the upper alpha-quantile of the sample's negatives.

    Wang & Liu, 2021, arXiv:2012.09740 (hard sampling is explicit, where a small temperature is implicit:
    a large one then does no harm). ``quantile`` alpha in (0, 1] is the share kept, ceil(alpha m) of m; its default is
    not confirmed against the paper. The rest as InfoNCE. The positive takes no part in the quantile. Over few negatives
    the quantile is coarse.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        quantile: float = 0.0819,
        negatives: Negatives = "batch",
        symmetric: bool = False,
        normalize: bool = True,
        scale_by_tau: bool = False,
    ) -> None:
        super().__init__(temperature, negatives, symmetric, normalize, scale_by_tau)
        check_quantile("HardContrastive", quantile)
        self.quantile = float(quantile)

    def select(self, negative: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """The negatives that count."""
        return hardest(negative, self.quantile)

    def of_scores(self, positive: Float[Tensor, " n"], negative: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        return super().of_scores(positive, self.select(negative))
