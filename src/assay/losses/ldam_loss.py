"""Label-distribution-aware margin loss."""

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


class LDAMLoss(nn.Module):
    """Cross-entropy of ``scale`` x (logits - m_y at the target), m_c in proportion to n_c^(-1/4), the largest being
    ``max_margin`` (Cao et al., 2019, arXiv:1906.07413, eq. 11-13, and the official code).

    ``counts`` are the sizes of the classes in training; without them all margins are ``max_margin``. The paper's
    logits are cosines (a normalised head): scale 30. ``logits`` (n, c), c >= 2, finite; ``target`` (n,) int64 in
    [0, c). Returns a scalar >= 0, or (n,) under ``reduction="none"``. InputError for counts below 1 or of another
    length, numbers that are not positive, and other input.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        counts: Sequence[int] | None = None,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not (0 < max_margin < math.inf and 0 < scale < math.inf):
            raise InputError(f"LDAMLoss: max_margin={max_margin}, scale={scale}; expected finite numbers > 0")
        if counts is not None and (len(counts) < 2 or min(counts) < 1):
            raise InputError(f"LDAMLoss: counts={list(counts)}; expected two or more, each at least 1")
        check_reduction("LDAMLoss", reduction)
        self.max_margin, self.scale, self.reduction = float(max_margin), float(scale), reduction
        sizes = torch.tensor([1.0] if counts is None else list(counts), dtype=torch.float64)
        self.margins = self.max_margin * (sizes.min() / sizes) ** 0.25

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("LDAMLoss", logits, target)
        if len(self.margins) not in (1, logits.shape[1]):
            raise InputError(f"LDAMLoss: {len(self.margins)} counts, {logits.shape[1]} logits; expected one a class")
        margin = self.margins.to(logits).expand(logits.shape[1])[target]
        lowered = logits - margin[:, None] * F.one_hot(target, logits.shape[1])
        return reduced(F.cross_entropy(self.scale * lowered, target, reduction="none"), self.reduction)

    def extra_repr(self) -> str:
        return f"max_margin={self.max_margin}, scale={self.scale}, reduction={self.reduction!r}"
