"""Cross-entropy of a binary classifier, plain or weighted by the classes of the batch."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class BinaryCrossEntropy(nn.Module):
    """Mean of -log p(target), where ``weighted`` times n0/n for positives and n1/n for negatives of the batch.

    The weights are those of the combined losses that follow AnyLoss (Han et al., 2024, arXiv:2405.14745): both classes
    weigh n0 n1 / n, whatever their share; a batch of one class has loss 0. ``scores`` (n,), (n, 1) or (n, 2) logits,
    finite, of which a difference z = z1 - z0 counts; ``target`` (n,) int64 in {0, 1}. Returns a scalar >= 0. Other
    input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True
    batchwise: ClassVar[bool] = True

    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        self.weighted = weighted

    def forward(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The loss of ``scores`` under ``target``."""
        check_scores("BinaryCrossEntropy", scores, most=2)
        check_labels("BinaryCrossEntropy", target, len(scores), 2)
        t = target.to(scores.dtype)
        share = t.mean()
        weight = torch.where(target == 1, 1 - share, share) if self.weighted else None
        return F.binary_cross_entropy_with_logits(binary_logits(scores), t, weight)

    def extra_repr(self) -> str:
        return f"weighted={self.weighted}"


def binary_logits(scores: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """The logit of class 1 from logits (n,), (n, 1) or (n, 2)."""
    if scores.dim() == 1:
        return scores
    return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]


def check_scores(where: str, scores: Tensor, *, most: int | None = None) -> None:
    """``scores`` are finite floats (n,) or (n, c), n >= 1, with at most ``most`` columns."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.dim() not in (1, 2):
        shape = (
            f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        )
        raise InputError(f"{where}: scores are {shape}; expected floats (n,) or (n, c)")
    columns = scores.shape[1] if scores.dim() == 2 else 1
    if len(scores) == 0 or columns == 0 or (most is not None and columns > most):
        raise InputError(
            f"{where}: scores have shape {tuple(scores.shape)}; expected n >= 1, 1 <= c <= {most or 'any'}"
        )
    if not torch.isfinite(scores).all():
        raise InputError(f"{where}: scores hold NaN or infinite values; expected finite")
