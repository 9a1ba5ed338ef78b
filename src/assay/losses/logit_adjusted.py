"""Logit-adjusted cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.runtime.errors import InputError


class LogitAdjustedLoss(nn.Module):
    """Cross-entropy of logits + ``tau`` log(class shares) (Menon et al., 2020, arXiv:2007.07314, eq. 10).

    ``counts`` are the sizes of the classes in training, equal where None. At ``tau`` = 1 the best logits are those of
    the *balanced* problem. ``tau`` >= 0; 0 is cross-entropy. ``logits`` (n, c), c >= 2, finite; ``target`` (n,) int64
    in [0, c). Returns a scalar >= 0, or (n,) under ``reduction="none"``. InputError for counts below 1 or of another
    length, and other input.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        counts: Sequence[int] | None = None,
        tau: float = 1.0,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not 0 <= tau < math.inf:
            raise InputError(f"LogitAdjustedLoss: tau={tau}; expected a finite number >= 0")
        if counts is not None and (len(counts) < 2 or min(counts) < 1):
            raise InputError(f"LogitAdjustedLoss: counts={list(counts)}; expected two or more, each at least 1")
        check_reduction("LogitAdjustedLoss", reduction)
        sizes = torch.tensor([1.0] if counts is None else list(counts), dtype=torch.float64)
        self.offsets, self.tau, self.reduction = tau * (sizes / sizes.sum()).log(), float(tau), reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("LogitAdjustedLoss", logits, target)
        if len(self.offsets) not in (1, logits.shape[1]):
            found = f"{len(self.offsets)} counts, {logits.shape[1]} logits"
            raise InputError(f"LogitAdjustedLoss: {found}; expected one a class")
        return reduced(F.cross_entropy(logits + self.offsets.to(logits), target, reduction="none"), self.reduction)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, reduction={self.reduction!r}"
