"""The contrastive loss of retrieval, on a matrix of scores."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.losses.contrastive import check_temperature
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError

Positives = Int[Tensor, " b"] | Bool[Tensor, "b m"]


class MultipleNegativesLoss(nn.Module):
    """Mean over positives of -log softmax of their row of scores / tau (van den Oord et al., 2018, arXiv:1807.03748,
    eq. 4; the contrastive loss of dual encoders).

    ``scores`` (b, m), finite: of b queries with m documents; ``target`` (b,) int64 names each row's positive column, or
    is a mask (b, m) of positives; ``ignore`` (b, m) marks entries that are neither (known false negatives, padding),
    whatever ``target`` says of them. A constant added to all scores of a query leaves the loss as it is. Returns a
    scalar >= 0, in float32 at least. Raises InputError for ``temperature`` <= 0, other shapes, and where no positive or
    no negative is left.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    batchwise: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature("MultipleNegativesLoss", temperature)

    def forward(
        self, scores: Float[Tensor, "b m"], target: Positives, ignore: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, ""]:
        """The loss of ``scores`` whose positives ``target`` names."""
        positive, negative = sides("MultipleNegativesLoss", scores, target, ignore)
        scaled = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
        log_p = scaled.masked_fill(~(positive | negative), -math.inf).log_softmax(1)
        return -log_p[positive].mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def sides(
    where: str, scores: Float[Tensor, "b m"], target: Positives, ignore: Bool[Tensor, "b m"] | None
) -> tuple[Bool[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Masks of the positives and of the negatives; InputError for other input, and where either is empty."""
    if scores.dim() != 2 or len(scores) == 0 or not scores.is_floating_point() or not torch.isfinite(scores).all():
        shape = f"{scores.dtype} of shape {tuple(scores.shape)}"
        raise InputError(f"{where}: scores are {shape}; expected finite floats (b, m) with b >= 1")
    if target.dtype == torch.bool:
        positive = target
    else:
        check_labels(where, target, len(scores), scores.shape[1])
        positive = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter(1, target[:, None], True)
    for name, mask in (("target", positive), ("ignore", ignore)):
        if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool):
            shape = f"{mask.dtype} {tuple(mask.shape)}"
            raise InputError(f"{where}: {name} is {shape}; expected a bool mask {tuple(scores.shape)}")
    negative = ~positive
    if ignore is not None:
        positive, negative = positive & ~ignore, negative & ~ignore
    if not positive.any() or not negative.any():
        found = f"{int(positive.sum())} positives, {int(negative.sum())} negatives"
        raise InputError(f"{where}: {found}; expected at least one of each")
    return positive, negative
