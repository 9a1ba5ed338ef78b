"""The hinge loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.margin import margins
from assay.losses.pairs import check_reduction, reduced


class HingeLoss(nn.Module):
    """max(0, 1 - z) of the margin z = y f (Cortes & Vapnik, 1995, "Support-vector networks").

    ``scores`` f (n,) or (n, 1), finite; ``target`` (n,) int64, 0 for y = -1 and 1 for y = +1. Returns a scalar >= 0,
    or (n,) under ``reduction="none"``. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_reduction("HingeLoss", reduction)
        self.reduction = reduction

    def forward(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``scores`` under ``target``."""
        return reduced((1 - margins("HingeLoss", scores, target)).clamp_min(0), self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
