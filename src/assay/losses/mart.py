"""MART: boosted cross-entropy, and a divergence that counts more where the clean prediction is wrong."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_pair, check_reduction, divergence, reduced
from assay.runtime.errors import InputError


class MARTLoss(nn.Module):
    """BCE(p_adv, y) + beta KL(p || p_adv) (1 - p_y) (Wang et al., 2020, ICLR, eq. 11), given both logits.

    BCE = -log p_adv_y - log(1 - max_{k != y} p_adv_k) (eq. 8), p and p_adv the softmax of ``logits`` and ``logits_adv``
    (n, c); ``target`` (n,) int64 in [0, c); ``beta`` >= 0 is the paper's lambda. log(1 - p_k) is the logsumexp of the
    other logits less that of all, which stays finite where the released code adds 1e-4. Returns a scalar >= 0, or (n,)
    under ``reduction="none"``. The attack is defenses.MART's. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("logits_adv",)

    def __init__(self, beta: float = 6.0, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta >= 0):
            raise InputError(f"MARTLoss: beta={beta}; expected a finite number >= 0")
        check_reduction("MARTLoss", reduction)
        self.beta, self.reduction = float(beta), reduction

    def forward(
        self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], logits_adv: Float[Tensor, "n c"]
    ) -> Float[Tensor, ...]:
        """The loss of ``logits`` and ``logits_adv`` under ``target``."""
        check_pair("MARTLoss", logits, logits_adv, target)
        rival = logits_adv.scatter(1, target[:, None], -math.inf).argmax(1)
        without = logits_adv.scatter(1, rival[:, None], -math.inf).logsumexp(1)
        boosted = F.cross_entropy(logits_adv, target, reduction="none") + logits_adv.logsumexp(1) - without
        missing = 1 - logits.softmax(1).gather(1, target[:, None])[:, 0]
        return reduced(boosted + self.beta * divergence(logits, logits_adv) * missing, self.reduction)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, reduction={self.reduction!r}"
