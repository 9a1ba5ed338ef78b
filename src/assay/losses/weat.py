"""WEAT: cross-entropy and divergence of adversarial training, weighted by the energy of each sample."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.energies import energy_weights
from assay.losses.pairs import check_pair, check_reduction, divergence, reduced
from assay.runtime.errors import InputError, unknown

FLOOR = 1e-12  # what the released code adds to probabilities


class WEATLoss(nn.Module):
    """w(x) [CE + beta KL(p(.|x) || p(.|x_adv))] (Mirza et al., 2024, arXiv:2407.06315, section 4), given both logits.

    ``variant`` "nat" takes the cross-entropy of ``logits`` (n, c), "adv" that of ``logits_adv`` (n, c); ``target`` (n,)
    int64 in [0, c). w is ``energy_weights`` of the clean logits, without a gradient. ``beta`` >= 0 is 6 in the paper's
    runs; the released function for "adv" has 7. ``normalize`` scales the weights of a batch to mean 1: without it they
    lower the effective learning rate. ``strict_reference`` takes log(softmax + 1e-12), as the released code does, which
    loses the gradient of probabilities below that. Returns a scalar >= 0, or (n,) under ``reduction="none"``. The
    attack is defenses.WEAT's. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("logits_adv",)

    def __init__(
        self,
        variant: Literal["nat", "adv"] = "nat",
        beta: float = 6.0,
        normalize: bool = False,
        strict_reference: bool = False,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if variant not in ("nat", "adv"):
            raise unknown("variant of WEATLoss", str(variant), ("nat", "adv"))
        if not (math.isfinite(beta) and beta >= 0):
            raise InputError(f"WEATLoss: beta={beta}; expected a finite number >= 0")
        check_reduction("WEATLoss", reduction)
        self.variant, self.beta, self.reduction = variant, float(beta), reduction
        self.normalize, self.strict_reference = normalize, strict_reference

    def weights(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The weight of each sample, without a gradient."""
        w = energy_weights(logits.detach())
        return w / w.mean() if self.normalize else w

    def forward(
        self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], logits_adv: Float[Tensor, "n c"]
    ) -> Float[Tensor, ...]:
        """The loss of ``logits`` and ``logits_adv`` under ``target``."""
        check_pair("WEATLoss", logits, logits_adv, target)
        fit = F.cross_entropy(logits if self.variant == "nat" else logits_adv, target, reduction="none")
        if self.strict_reference:
            log_adv = (logits_adv.softmax(1) + FLOOR).log()
            drift = F.kl_div(log_adv, logits.softmax(1), reduction="none").sum(1)
        else:
            drift = divergence(logits, logits_adv)
        return reduced(self.weights(logits) * (fit + self.beta * drift), self.reduction)

    def extra_repr(self) -> str:
        return f"variant={self.variant!r}, beta={self.beta}, reduction={self.reduction!r}"
