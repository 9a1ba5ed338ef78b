"""AAER: a penalty on samples whose single attack step lowered their loss."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_pair
from assay.runtime.errors import InputError


class AAERLoss(nn.Module):
    """Mean CE + ``lam_number`` (n/N) (``lam_ce`` C + ``lam_logit`` R) (Lin et al., 2023, arXiv:2404.08154).

    ``logits`` (N, c) are those after the attack's step and carry the gradient, ``logits_before`` (N, c) those at its
    start, detached here; ``target`` (N,) int64 in [0, c). The n samples A whose cross-entropy the step lowered are
    abnormal; ties are normal. C is the mean over A of what they lost, V the mean over a set of |logits -
    logits_before|^2, R = max(V_A - V_rest, 0) with V_rest detached. With no abnormal or no normal sample the penalty is
    0, as in the released script. There C has no gradient either, so that ``lam_ce`` trains nothing:
    ``ce_gradient=False``; by default, as defined in the paper, it raises the later loss toward the earlier. The script
    for N-FGSM has 1, 4 and 1.5. All is float32 or better: half precision flips signs of small differences. Large
    factors at a large radius favour a constant predictor, which has no abnormal sample: watch clean accuracy. Raises
    InputError for mis-shaped, empty or infinite input and for negative factors.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("logits_before",)
    batchwise: ClassVar[bool] = True

    def __init__(
        self,
        lam_number: float = 1.0,
        lam_ce: float = 4.0,
        lam_logit: float = 1.5,
        ce_gradient: bool = True,
    ) -> None:
        super().__init__()
        factors = {"lam_number": lam_number, "lam_ce": lam_ce, "lam_logit": lam_logit}
        for name, value in factors.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"AAERLoss: {name}={value}; expected a finite number >= 0")
        self.lam_number, self.lam_ce, self.lam_logit = float(lam_number), float(lam_ce), float(lam_logit)
        self.ce_gradient = ce_gradient

    def abnormal(
        self,
        lost: Float[Tensor, " n"],
        before: Float[Tensor, "n c"],
        after: Float[Tensor, "n c"],
        target: Int[Tensor, " n"],
    ) -> Bool[Tensor, " n"]:
        """Which samples have a lower loss after the step: those that ``lost`` some."""
        return lost > 0

    def terms(
        self, before: Float[Tensor, "n c"], after: Float[Tensor, "n c"], target: Int[Tensor, " n"]
    ) -> dict[str, Tensor]:
        """Number "n_abnormal", "ce_gap" C, "logit_shift_abnormal" V_A, "logit_shift_normal" V_rest (0 if none)."""
        lost = F.cross_entropy(before, target, reduction="none") - F.cross_entropy(after, target, reduction="none")
        a = self.abnormal(lost, before, after, target)
        shift = (after - before).square().sum(1)
        n, m = a.sum(), (~a).sum()
        lost = lost if self.ce_gradient else lost.detach()
        return {
            "n_abnormal": n,
            "ce_gap": (lost * a).sum() / n.clamp_min(1),
            "logit_shift_abnormal": (shift * a).sum() / n.clamp_min(1),
            "logit_shift_normal": (shift.detach() * ~a).sum() / m.clamp_min(1),
        }

    def excess(self, terms: dict[str, Tensor]) -> Float[Tensor, ""]:
        """R: by how much the logits of abnormal samples move further."""
        return (terms["logit_shift_abnormal"] - terms["logit_shift_normal"]).clamp_min(0)

    @overload
    def forward(self, logits: Tensor, target: Tensor, logits_before: Tensor) -> Tensor: ...
    @overload
    def forward(
        self, logits: Tensor, target: Tensor, logits_before: Tensor, *, return_stats: Literal[True]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def forward(
        self,
        logits: Float[Tensor, "n c"],
        target: Int[Tensor, " n"],
        logits_before: Float[Tensor, "n c"],
        *,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss; with ``return_stats`` also the ``terms``, detached."""
        check_pair("AAERLoss", logits, logits_before, target)
        wide = torch.promote_types(logits.dtype, torch.float32)
        after, before = logits.to(wide), logits_before.detach().to(wide)
        terms = self.terms(before, after, target)
        n = terms["n_abnormal"].to(wide)
        # Nothing is added where a set is empty, so that factors of 0 leave cross-entropy to the last bit.
        share = self.lam_number * n / len(target) * (n < len(target))
        penalty = share * (self.lam_ce * terms["ce_gap"] + self.lam_logit * self.excess(terms))
        loss = F.cross_entropy(after, target) + penalty
        return (loss, {name: t.detach() for name, t in terms.items()}) if return_stats else loss

    def extra_repr(self) -> str:
        return f"lam_number={self.lam_number}, lam_ce={self.lam_ce}, lam_logit={self.lam_logit}"
