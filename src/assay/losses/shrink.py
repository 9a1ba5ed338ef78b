"""Consistency inside a class space that shrinks until the pseudo label is certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError


@dataclass(frozen=True, eq=False)
class ShrinkResult:
    """The shrunk class space of each of b predictions over c classes.

    keep (b, c): the classes that are left; top1 (b,): the most likely class; confidence (b,): its probability among
    them; satisfied (b,): whether that reaches the threshold; removed (b,): how many classes are gone.
    """

    keep: Bool[Tensor, "b c"]
    top1: Int[Tensor, " b"]
    confidence: Float[Tensor, " b"]
    satisfied: Bool[Tensor, " b"]
    removed: Int[Tensor, " b"]


def shrink_targets(probs: Float[Tensor, "b c"], tau: float = 0.95) -> ShrinkResult:
    """Remove the classes that compete with the most likely one until it is certain (Yang et al., 2023,
    arXiv:2308.06777, section 3.3).

    With s_0 >= s_1 >= ... a row in decreasing order, the classes of ranks 1 to k - 1 go, for the smallest k in 2 ..
    c - 1 with s_0 / (s_0 + s_k + ... + s_{c-1}) >= ``tau``, and for k = c - 1 where there is none: the row is then not
    satisfied. A row with s_0 >= tau is certain as it is and keeps every class. Equal probabilities rank by class. As
    the authors' code, it starts at k = 2 and always leaves the least likely class. Cost: b c log c.

    ``probs`` (b, c), c >= 3, in [0, 1], rows that sum to 1 within 1e-3; ``tau`` in (0, 1). Raises InputError otherwise.
    """
    check_probabilities("shrink_targets", probs, tau)
    ranked, order = probs.sort(dim=1, descending=True, stable=True)
    top, b, c = ranked[:, :1], *probs.shape
    tail = ranked.flip(1).cumsum(1).flip(1)
    confidence = top / (top + tail[:, 2:])  # of k = 2 .. c - 1; it does not decrease
    reached = confidence >= tau
    first = torch.where(reached.any(1), reached.int().argmax(1), c - 3)
    certain = top[:, 0] >= tau
    start = torch.where(certain, 1, first + 2)[:, None]
    ranks = torch.arange(c, device=probs.device)
    keep = torch.empty(b, c, dtype=torch.bool, device=probs.device)
    keep.scatter_(1, order, (ranks == 0) | (ranks >= start))
    found = torch.where(certain, top[:, 0], confidence.gather(1, first[:, None])[:, 0])
    return ShrinkResult(keep, order[:, 0], found, found >= tau, start[:, 0] - 1)


def check_probabilities(where: str, probs: Tensor, tau: float) -> None:
    """InputError unless ``probs`` are distributions over three classes or more and ``tau`` is in (0, 1)."""
    if not 0 < tau < 1:
        raise InputError(f"{where}: tau={tau}; expected a threshold in (0, 1)")
    if probs.dim() != 2 or len(probs) == 0 or probs.shape[1] < 3 or not probs.is_floating_point():
        given = f"{probs.dtype} of shape {tuple(probs.shape)}"
        raise InputError(f"{where}: probabilities are {given}; expected floats (b, c) with b >= 1, c >= 3")
    if not (torch.isfinite(probs).all() and probs.min() >= 0 and ((probs.sum(1) - 1).abs() <= 1e-3).all()):
        raise InputError(f"{where}: rows are no distributions; expected finite numbers >= 0 that sum to 1")


class ShrinkLoss(nn.Module):
    """(1/b) sum_i w_i CE(logits_i inside the shrunk class space, top-1 class), over the uncertain predictions i.

    Yang et al., 2023, arXiv:2308.06777, with the first of its two weights as in the authors' code: w_i = max_c q_ic
    where the shrunk space of q_i (see shrink_targets) makes its top-1 class certain, else 0; certain rows count in b
    and add nothing. ``logits`` (b, c) are the auxiliary head's on the strong view, ``probs`` (b, c) the q of the weak
    view, which carry no gradient; ``tau`` in (0, 1). Returns a scalar >= 0. InputError for other input.
    """

    kind: ClassVar[str] = "function"

    def __init__(self, tau: float = 0.95) -> None:
        super().__init__()
        if not 0 < tau < 1:
            raise InputError(f"ShrinkLoss: tau={tau}; expected a threshold in (0, 1)")
        self.tau = float(tau)

    def forward(self, logits: Float[Tensor, "b c"], probs: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
        """The loss of the uncertain rows of ``probs``."""
        return self.inside(logits, probs, shrink_targets(probs.detach(), self.tau))

    def inside(
        self, logits: Float[Tensor, "b c"], probs: Float[Tensor, "b c"], space: ShrinkResult
    ) -> Float[Tensor, ""]:
        """The same inside class spaces that are given."""
        if logits.shape != probs.shape or not torch.isfinite(logits).all():
            raise InputError(
                f"ShrinkLoss: logits {tuple(logits.shape)} for probabilities {tuple(probs.shape)}; expected finite "
                "logits of the same shape"
            )
        highest = probs.detach().amax(1)
        weight = highest * ((highest < self.tau) & space.satisfied)
        losses = F.cross_entropy(logits.masked_fill(~space.keep, -torch.inf), space.top1, reduction="none")
        return (weight * losses).mean()

    def extra_repr(self) -> str:
        return f"tau={self.tau}"
