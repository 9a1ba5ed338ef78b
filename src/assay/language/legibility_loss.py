"""What is asked of two scores when a person has compared the legibility of two words."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError

CHOICES = ("first", "second", "both", "neither")


def check_pairs(where: str, s0: Tensor, s1: Tensor, choice: Tensor) -> None:
    """``s0`` and ``s1`` are finite floats (n,), n >= 1, and ``choice`` int64 (n,) in 0..3."""
    if not all(isinstance(s, Tensor) and s.is_floating_point() and s.dim() == 1 for s in (s0, s1)):
        raise InputError(f"{where}: scores are no float tensors (n,); expected one score a word")
    if len(s0) == 0 or len(s0) != len(s1):
        raise InputError(f"{where}: {len(s0)} and {len(s1)} scores; expected as many of both words, at least one")
    if not (torch.isfinite(s0).all() and torch.isfinite(s1).all()):
        raise InputError(f"{where}: scores hold NaN or infinite values; expected finite")
    check_labels(where, choice, len(s0), len(CHOICES))


class LegibilityLoss(nn.Module):
    """Which of two words is more legible, and is each of them legible at all (Seth et al., 2023, arXiv:2303.05077, the
    multi-task objective; the masks are those of the released trainer).

    With H the binary cross-entropy of a logit: H(s0 - s1, [c = 0]) where c < 2, H(s0, [c in {0, 2}]) where c is not 1,
    H(s1, [c in {1, 2}]) where c > 0, summed. ``choice`` c: 0 or 1, that word is the more legible one (and is legible;
    of the other nothing is known, so it is no negative), 2 both alike, 3 neither. ``s0``, ``s1`` (n,) finite scores,
    legible where > 0; c (n,) int64. Returns a scalar >= 0, or (n,) under ``reduction="none"``. Other input raises
    InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"LegibilityLoss: reduction={reduction!r}; expected mean, sum or none")
        self.reduction = reduction

    def known(self, choice: Int[Tensor, " n"]) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """For which pairs the choice tells whether the first, and the second, word is legible."""
        return choice != 1, choice != 0

    def forward(
        self, s0: Float[Tensor, " n"], s1: Float[Tensor, " n"], choice: Int[Tensor, " n"]
    ) -> Float[Tensor, ...]:
        """The loss of both scores under ``choice``."""
        check_pairs("LegibilityLoss", s0, s1, choice)
        first, second = self.known(choice)
        loss = (
            _entropy(s0 - s1, choice == 0, choice < 2)
            + _entropy(s0, (choice == 0) | (choice == 2), first)
            + _entropy(s1, (choice == 1) | (choice == 2), second)
        )
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def _entropy(score: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    return counted * F.binary_cross_entropy_with_logits(score, positive.to(score.dtype), reduction="none")
