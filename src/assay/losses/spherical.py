"""The spherical family: losses of the scores' sum, their sum of squares and the target's score."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced


class SphericalLoss(nn.Module):
    """A loss L(s, q, o_c) of s = sum o, q = ||o||^2 and o_c (de Brebisson & Vincent, 2016, arXiv:1511.05042).

    Its gradient at scores o is dL/ds 1 + 2 dL/dq o + dL/do_c e_c, which is what SphericalLinear makes use of.
    ``logits`` o (n, c), c >= 2, finite, taken in float32 at least; ``target`` (n,) int64 in [0, c). Returns a scalar,
    or (n,) under ``reduction="none"``. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    contract: ClassVar[bool] = True

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_reduction(type(self).__name__, reduction)
        self.reduction = reduction

    def value(
        self, s: Float[Tensor, " n"], q: Float[Tensor, " n"], own: Float[Tensor, " n"], classes: int
    ) -> Float[Tensor, " n"]:
        """The losses of samples with sums ``s``, sums of squares ``q`` and target scores ``own``."""
        raise TypeError(f"{type(self).__name__} states no value")

    def prepared(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Scores with the same loss, for which it is computed more exactly."""
        return logits

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits(type(self).__name__, logits, target)
        o = self.prepared(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        own = o.gather(1, target[:, None])[:, 0]
        return reduced(self.value(o.sum(1), o.square().sum(1), own, o.shape[1]), self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
