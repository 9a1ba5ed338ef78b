"""FixMatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from assay.labels.semi_supervised import Consistency, Unlabelled
from assay.runtime.errors import InputError
from assay.training import State

QUEUE = 32  # batches whose mean prediction distribution alignment divides by


@dataclass(frozen=True, kw_only=True)
class FixMatch(Consistency):
    """Predictions of probability ``tau`` or more are the targets of strong views (Sohn et al., 2020, arXiv:2001.07685,
    eq. 3-4).

    ``soft`` takes the distribution q for a target and not its largest class. ``align`` divides q by the mean of the
    last 32 batches' mean predictions, this one's included, and normalises it (distribution alignment; Berthelot et
    al., 2020, arXiv:1911.09785, section 3.1, towards uniform classes and by a queue, as Yang et al., 2023,
    arXiv:2308.06777, have it), before it is compared with ``tau`` in (0, 1). The rest as SemiSupervised and
    Consistency; mu and tau are the paper's. Its cosine schedule ends at a fifth of the rate, the plan's at 0.
    """

    tau: float = 0.95
    soft: bool = False
    align: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau < 1:
            raise InputError(f"{type(self).__name__}: tau={self.tau}; expected a threshold in (0, 1)")

    def targets(self, logits: Float[Tensor, "b c"], state: State) -> Float[Tensor, "b c"]:
        q = super().targets(logits, state)
        return aligned(q, state) if self.align else q

    def certain(self, q: Float[Tensor, "b c"], unlabelled: Unlabelled, state: State) -> Bool[Tensor, " b"]:
        return q.amax(1) >= self.tau

    def consistency(self, logits: Float[Tensor, "b c"], q: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        return F.cross_entropy(logits, q, reduction="none") if self.soft else super().consistency(logits, q)


def aligned(q: Float[Tensor, "b c"], state: State) -> Float[Tensor, "b c"]:
    """q over the mean of the queue of batch means, at least 1e-6, with rows that sum to 1; the queue moves on."""
    held = state.memory.get("alignment", q.new_zeros((0, q.shape[1])))
    queue = torch.cat((held, q.mean(0, keepdim=True)))[-QUEUE:]
    state.memory["alignment"] = queue
    return F.normalize(q / queue.mean(0).clamp_min(1e-6), p=1, dim=1)
