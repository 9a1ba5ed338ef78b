"""The threshold-consistent margin loss."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class TCMLoss(nn.Module):
    """lam_pos x mean(m+ - s) over positive pairs with s <= m+, plus lam_neg x mean(s - m-) over negative pairs with
    s >= m- (Zhang et al., 2024, arXiv:2307.04047, L_TCM; defaults of pytorch-metric-learning).

    s is the cosine similarity of two embeddings; positive pairs are those of one label, a sample is no pair with
    itself. Both margins are absolute, so that all classes are pushed to one operating point; it is a regulariser, added
    to any loss on embeddings. The means are over the hard pairs alone, and a term without hard pairs is 0 with a
    gradient of 0.

    ``embeddings`` (n, d), d >= 2, finite and not zero; ``target`` (n,) int64. ``pairs`` names the pairs instead:
    indices (anchor, positive, anchor, negative), each int64 (k,). Returns a scalar >= 0, in float32 at least. Raises
    InputError for other shapes and indices, margins outside [-1, 1] or with ``neg_margin`` above ``pos_margin``
    (RuntimeWarning where they are equal), negative weights.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    batchwise: ClassVar[bool] = True
    embeddings: ClassVar[bool] = True

    def __init__(
        self, pos_margin: float = 0.9, neg_margin: float = 0.5, lam_pos: float = 1.0, lam_neg: float = 1.0
    ) -> None:
        super().__init__()
        if not -1 <= neg_margin <= pos_margin <= 1:
            given = f"neg_margin={neg_margin}, pos_margin={pos_margin}"
            raise InputError(f"TCMLoss: {given}; expected -1 <= neg_margin < pos_margin <= 1")
        if not (0 <= lam_pos < float("inf") and 0 <= lam_neg < float("inf")):
            raise InputError(f"TCMLoss: lam_pos={lam_pos}, lam_neg={lam_neg}; expected finite weights >= 0")
        if neg_margin == pos_margin:
            warnings.warn(f"TCMLoss: both margins are {pos_margin}: no similarity is left alone", RuntimeWarning, 2)
        self.pos_margin, self.neg_margin = float(pos_margin), float(neg_margin)
        self.lam_pos, self.lam_neg = float(lam_pos), float(lam_neg)

    def forward(
        self, embeddings: Float[Tensor, "n d"], target: Int[Tensor, " n"], pairs: Pairs | None = None
    ) -> Float[Tensor, ""]:
        """The loss of ``embeddings`` under ``target``."""
        self._check(embeddings, target)
        unit = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
        if pairs is not None:
            anchor, positive, other, negative = _checked(pairs, len(unit))
            near, far = ((unit[a] * unit[b]).sum(1) for a, b in ((anchor, positive), (other, negative)))
            return self._terms(near, torch.ones_like(near).bool(), far, torch.ones_like(far).bool())
        similarity, same = unit @ unit.T, target[:, None] == target
        itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
        return self._terms(similarity, same & ~itself, similarity, ~same)

    def margins(self, near: Tensor, positive: Tensor, far: Tensor, negative: Tensor) -> tuple[float, float]:
        """m+ and m-: the same for all pairs."""
        return self.pos_margin, self.neg_margin

    def _terms(self, near: Tensor, positive: Tensor, far: Tensor, negative: Tensor) -> Tensor:
        """The weighted means over hard pairs; masks say which entries are positive and negative pairs."""
        upper, lower = self.margins(near, positive, far, negative)
        return self.lam_pos * _mean(upper - near, positive) + self.lam_neg * _mean(far - lower, negative)

    def _check(self, embeddings: Tensor, target: Tensor) -> None:
        check_inputs("TCMLoss", embeddings)
        if embeddings.dim() != 2 or embeddings.shape[1] < 2:
            raise InputError(f"TCMLoss: embeddings have shape {tuple(embeddings.shape)}; expected (n, d) with d >= 2")
        if not embeddings.any(1).all():
            raise InputError("TCMLoss: an embedding is zero; expected directions")
        check_labels("TCMLoss", target, len(embeddings))

    def extra_repr(self) -> str:
        return (
            f"pos_margin={self.pos_margin}, neg_margin={self.neg_margin}, "
            f"lam_pos={self.lam_pos}, lam_neg={self.lam_neg}"
        )


def _checked(pairs: Pairs, n: int) -> Pairs:
    """``pairs``; InputError unless they are indices in [0, n), as many anchors as partners."""
    given = [f"{i.dtype} {tuple(i.shape)}" for i in pairs]
    if len(pairs) != 4 or any(i.dtype != torch.int64 or i.dim() != 1 for i in pairs):
        raise InputError(f"TCMLoss: pairs {given}; expected four of int64 (k,)")
    if len(pairs[0]) != len(pairs[1]) or len(pairs[2]) != len(pairs[3]):
        raise InputError(f"TCMLoss: pairs {given}; expected as many anchors as partners")
    if any(len(i) and not 0 <= int(i.min()) <= int(i.max()) < n for i in pairs):
        raise InputError(f"TCMLoss: an index of pairs is out of range; expected 0 to {n - 1}")
    return pairs


def _mean(excess: Tensor, pairs: Tensor) -> Tensor:
    """The mean excess over the pairs on the wrong side of the margin, or on it."""
    hard = pairs & (excess >= 0)
    return torch.where(hard, excess, 0.0).sum() / hard.sum().clamp_min(1)
