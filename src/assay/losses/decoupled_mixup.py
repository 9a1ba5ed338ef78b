"""Decoupled mixup: each class of a mixed sample is recognised without competition from the other."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown

MODES = ("both", "less", "more")
Share = float | Float[Tensor, " n"]


def decoupled_scores(
    logits: Float[Tensor, "n c"], a: Int[Tensor, " n"], b: Int[Tensor, " n"], *more: Int[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """H_a|b = exp(z_a) / sum over c other than b of exp(z_c), and H_b|a (Liu et al., 2023, arXiv:2203.10761).

    With k > 2 classes mixed, that of each class is over itself and the classes that are in none of the samples. A label
    that a sample has twice is not removed from its own sum. Values in (0, 1]. InputError for labels out of range.
    """
    check_logits("decoupled_scores", logits, a)
    for labels in (b, *more):
        check_labels("decoupled_scores", labels, len(logits), logits.shape[1])
    return decoupled_log_scores(logits, torch.stack((a, b, *more), 1)).exp()


def decoupled_log_scores(logits: Float[Tensor, "n c"], labels: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """log H of each of a sample's labels; the gradient at the logits that are removed is exactly 0."""
    mixed = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels, True)
    columns = []
    for own in labels.split(1, 1):
        removed = mixed.scatter(1, own, False)
        columns.append(logits.masked_fill(removed, -math.inf).log_softmax(1).gather(1, own))
    return torch.cat(columns, 1)


def rescaled(share: Float[Tensor, " n"], xi: float, t: float) -> Float[Tensor, " n"]:
    """h(l) = (l / xi)^t below ``xi``, else 1."""
    return torch.where(share < xi, (share / xi) ** t, torch.ones_like(share))


class _MixedLoss(nn.Module):
    """What both losses on a mixed sample share: the checks of its two labels and of their shares."""

    def _pair(
        self, logits: Tensor, target: Tensor, target_b: Tensor, lam: Share, true: Tensor | None
    ) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, "n 2"]]:
        """The shares of both labels and which of them are true, once the input is known to be usable."""
        where = type(self).__name__
        check_logits(where, logits, target)
        check_labels(where, target_b, len(logits), logits.shape[1])
        share = torch.as_tensor(lam, dtype=logits.dtype, device=logits.device)
        if share.shape not in ((), (1,), (len(logits),)):
            raise InputError(f"{where}: lam has shape {tuple(share.shape)}; expected one number or ({len(logits)},)")
        share = share.expand(len(logits))
        if not ((share >= 0) & (share <= 1)).all():
            raise InputError(f"{where}: lam spans [{share.min():.4g}, {share.max():.4g}]; expected shares in [0, 1]")
        mask = torch.ones_like(share, dtype=torch.bool)[:, None].expand(-1, 2) if true is None else true
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (len(logits), 2):
            kind = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"{where}: true is {kind}; expected a bool tensor ({len(logits)}, 2)")
        return torch.stack((share, 1 - share), 1), mask


class DecoupledMixupLoss(_MixedLoss):
    """-lam log p_a - (1 - lam) log p_b - eta_a log H_a|b - eta_b log H_b|a (Liu et al., 2023, arXiv:2203.10761).

    p is the softmax and H the decoupled one (``decoupled_scores``): L_MCE couples the two classes, which share one unit
    of probability, the regulariser lets both be recognised. eta_a = ``eta`` h(lam) and eta_b = ``eta`` h(1 - lam); h is
    1, or with ``scale`` "pow" (l / ``xi``)^``t`` below ``xi``. By ``mode`` both branches have it, or only that of the
    smaller ("less") or larger ("more") share: as in the authors' code, that of a where lam < ``thr`` and of b otherwise
    under "less", the other one under "more". It is soft cross-entropy where ``eta`` is 0, and for samples with a = b or
    lam of 0 or 1. eta = 0.1 is not confirmed; the published configurations have 0.01 to 0.1.

    ``logits`` (n, c), finite; labels a ``target`` and b ``target_b`` (n,) int64 in [0, c); ``lam`` in [0, 1], one
    number or (n,). ``true`` (n, 2), bool, says which labels are true rather than pseudo-labels (the paper's asymmetric
    strategy): a branch without a true label has no regulariser. Returns a scalar >= 0, or (n,) under
    ``reduction="none"``. InputError for other input, and for c = 2 where a differs from b: no class is left to compete.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("target_b", "lam")

    def __init__(
        self,
        eta: float = 0.1,
        mode: Literal["both", "less", "more"] = "both",
        thr: float = 0.5,
        scale: Literal["none", "pow"] = "none",
        xi: float = 1.0,
        t: float = 0.0,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not 0 <= eta < math.inf or not 0 <= thr <= 1:
            raise InputError(f"DecoupledMixupLoss: eta={eta}, thr={thr}; expected a finite eta >= 0, thr in [0, 1]")
        if mode not in MODES:
            raise unknown("mode of DecoupledMixupLoss", str(mode), MODES)
        if scale not in ("none", "pow"):
            raise unknown("scale of DecoupledMixupLoss", str(scale), ("none", "pow"))
        _check_rescaling("DecoupledMixupLoss", xi, t)
        check_reduction("DecoupledMixupLoss", reduction)
        self.eta, self.mode, self.thr, self.reduction = float(eta), mode, float(thr), reduction
        self.scale, self.xi, self.t = scale, float(xi), float(t)

    def weights(self, shares: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """eta of both branches of samples whose labels have these shares."""
        weight = rescaled(shares, self.xi, self.t) if self.scale == "pow" else torch.ones_like(shares)
        if self.mode != "both":
            below = shares[:, 0] < self.thr
            first = below if self.mode == "less" else ~below
            weight = weight * torch.stack((first, ~first), 1)
        return self.eta * weight

    def branches(self, logits: Float[Tensor, "n c"], labels: Int[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """-log H_a|b and -log H_b|a."""
        return -decoupled_log_scores(logits, labels)

    def forward(
        self,
        logits: Float[Tensor, "n c"],
        target: Int[Tensor, " n"],
        target_b: Int[Tensor, " n"],
        lam: Share,
        true: Bool[Tensor, "n 2"] | None = None,
    ) -> Float[Tensor, ...]:
        """The loss of ``logits`` under the two labels of each mixture."""
        shares, mask = self._pair(logits, target, target_b, lam, true)
        labels = torch.stack((target, target_b), 1)
        mixed = (target != target_b) & (shares > 0).all(1)
        if self.eta and mixed.any() and logits.shape[1] < 3:
            raise InputError("DecoupledMixupLoss: 2 classes, both mixed; expected at least 3")
        soft = -(shares * logits.log_softmax(1).gather(1, labels)).sum(1)
        if not (self.eta and mixed.any()):
            return reduced(soft, self.reduction)
        weight = self.weights(shares) * mask * mixed[:, None]
        return reduced(soft + (weight * self.branches(logits, labels)).sum(1), self.reduction)

    def extra_repr(self) -> str:
        return f"eta={self.eta}, mode={self.mode!r}, scale={self.scale!r}, xi={self.xi}, t={self.t}"


class DecoupledBCELoss(_MixedLoss):
    """Binary cross-entropy of sigmoids under two-hot labels h(lam) e_a + h(1 - lam) e_b (Liu et al., 2023,
    arXiv:2203.10761, DM(BCE)), summed over classes as in the authors' code.

    h(l) = (l / ``xi``)^``t`` below ``xi``, else 1: both classes can reach 1. A share of 0 stays 0 at every ``t``; a
    sample with a = b has the label h of the larger share. Where a label is not ``true`` its plain share stands in place
    of h. The defaults are not confirmed. Arguments, result and errors are those of ``DecoupledMixupLoss``; c = 2 is
    allowed.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("target_b", "lam")

    def __init__(self, xi: float = 0.8, t: float = 1.0, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        _check_rescaling("DecoupledBCELoss", xi, t)
        check_reduction("DecoupledBCELoss", reduction)
        self.xi, self.t, self.reduction = float(xi), float(t), reduction

    def forward(
        self,
        logits: Float[Tensor, "n c"],
        target: Int[Tensor, " n"],
        target_b: Int[Tensor, " n"],
        lam: Share,
        true: Bool[Tensor, "n 2"] | None = None,
    ) -> Float[Tensor, ...]:
        """The loss of ``logits`` under the two labels of each mixture."""
        shares, mask = self._pair(logits, target, target_b, lam, true)
        hot = torch.where(mask & (shares > 0), rescaled(shares, self.xi, self.t), shares)
        labels = torch.stack((target, target_b), 1)
        two_hot = torch.zeros_like(logits).scatter_reduce(1, labels, hot, "amax")
        loss = F.binary_cross_entropy_with_logits(logits, two_hot, reduction="none").sum(1)
        return reduced(loss, self.reduction)

    def extra_repr(self) -> str:
        return f"xi={self.xi}, t={self.t}, reduction={self.reduction!r}"


def _check_rescaling(where: str, xi: float, t: float) -> None:
    if not 0 < xi <= 1 or not 0 <= t < math.inf:
        raise InputError(f"{where}: xi={xi}, t={t}; expected xi in (0, 1], a finite t >= 0")
