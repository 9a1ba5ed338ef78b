"""Losses on bags of samples whose responses are known on average only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_reduction, reduced
from assay.runtime.errors import InputError

PerSample = Callable[[Tensor, Tensor], Tensor]


def bag_means(values: Float[Tensor, "n ..."], bag: Int[Tensor, " n"], bags: int) -> Float[Tensor, "a ..."]:
    """The mean of the values of each bag; ``bag`` holds 0 to ``bags`` - 1."""
    size = torch.bincount(bag, minlength=bags).to(values)
    total = values.new_zeros((bags, *values.shape[1:])).index_add(0, bag, values)
    return total / size.view(-1, *[1] * (values.dim() - 1))


def bag_log_means(values: Float[Tensor, "n c"], bag: Int[Tensor, " n"], bags: int) -> Float[Tensor, "a c"]:
    """The logarithm of ``bag_means(values.exp(), ...)``, where that may be 0 too."""
    peak = values.detach().new_full((bags, values.shape[1]), -torch.inf)
    peak = peak.scatter_reduce(0, bag[:, None].expand_as(values), values.detach(), "amax")
    return bag_means((values - peak[bag]).exp(), bag, bags).log() + peak


class InterpolatedBagLoss(nn.Module):
    """Between fitting the mean prediction of a bag and fitting every prediction to the bag's mean response (Javanmard
    et al., 2024, arXiv:2401.11081): (1 - rho) L_bag + rho L_ins.

    L_bag is the mean over bags of l(mean prediction, target), L_ins that of the mean over the bag of l(prediction,
    target). For squares it is L_bag + rho R, R the mean over bags of the variance of the predictions within: rho
    multiplies the shrinkage, and rho = 1 is the instance loss. ``rho`` >= 0, above 1 only as extrapolation.

    ``base``: "squared" (predictions (n, ...), targets (a, ...)); "cross-entropy" (logits (n, c), targets (a, c) the
    shares of the classes; what is averaged are probabilities); or a function of predictions and targets to losses (n,)
    or (n, ...). ``bag`` (n,) int64 names the bag of each sample, 0 to a - 1; a batch holds whole bags, of any sizes;
    every bag counts alike. Returns a scalar, or (a,) under ``reduction="none"``. Raises InputError for an empty bag,
    indices out of range and values that are not finite.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("bag",)
    batchwise: ClassVar[bool] = True

    def __init__(
        self,
        rho: float = 0.05,
        base: Literal["squared", "cross-entropy"] | PerSample = "squared",
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not (math.isfinite(rho) and rho >= 0):
            raise InputError(f"{name}: rho={rho}; expected a finite number >= 0")
        if not callable(base) and base not in ("squared", "cross-entropy"):
            raise InputError(f"{name}: base={base!r}; expected 'squared', 'cross-entropy' or a function")
        check_reduction(name, reduction)
        self.rho, self.base, self.reduction = float(rho), base, reduction

    def forward(
        self, pred: Float[Tensor, "n ..."], target: Float[Tensor, "a ..."], bag: Int[Tensor, " n"]
    ) -> Float[Tensor, ...]:
        """The loss of the predictions of whole bags."""
        self._check(pred, target, bag)
        if self.base == "cross-entropy":
            p, log_p, a = pred.softmax(1), pred.log_softmax(1), len(target)
            together = _cross_entropy(bag_means(p, bag, a), bag_log_means(log_p, bag, a), target)
            apart = bag_means(_cross_entropy(p, log_p, target[bag]), bag, a)
            return reduced((1 - self.rho) * together + self.rho * apart, self.reduction)
        together = self._each(bag_means(pred, bag, len(target)), target)
        apart = bag_means(self._each(pred, target[bag]), bag, len(target))
        return reduced((1 - self.rho) * together + self.rho * apart, self.reduction)

    def _each(self, pred: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        loss = self.base(pred, target) if callable(self.base) else F.mse_loss(pred, target, reduction="none")
        return loss.flatten(1).mean(1) if loss.dim() > 1 else loss

    def _check(self, pred: Tensor, target: Tensor, bag: Tensor) -> None:
        name, n, a = type(self).__name__, len(pred), len(target)
        if n == 0 or a == 0 or pred.shape[1:] != target.shape[1:] or not pred.is_floating_point():
            raise InputError(
                f"{name}: predictions {tuple(pred.shape)}, targets {tuple(target.shape)}; expected floats (n, ...) and "
                "(a, ...) with n, a >= 1"
            )
        if self.base == "cross-entropy" and pred.dim() != 2:
            raise InputError(f"{name}: logits {tuple(pred.shape)}; expected (n, c)")
        if bag.dtype != torch.int64 or bag.shape != (n,) or bag.min() < 0 or bag.max() >= a:
            raise InputError(
                f"{name}: bags {bag.dtype} {tuple(bag.shape)}; expected int64 ({n},) with values 0 to {a - 1}"
            )
        empty = int((torch.bincount(bag, minlength=a) == 0).sum())
        if empty:
            raise InputError(f"{name}: {empty} of {a} bags have no sample; expected whole bags, at least one in each")
        if not (torch.isfinite(pred).all() and torch.isfinite(target).all()):
            raise InputError(f"{name}: predictions or targets are not finite; expected finite numbers")

    def extra_repr(self) -> str:
        return f"rho={self.rho}, base={self.base!r}, reduction={self.reduction!r}"


def _cross_entropy(
    p: Float[Tensor, "n c"], log_p: Float[Tensor, "n c"], target: Float[Tensor, "n c"]
) -> Float[Tensor, " n"]:
    """Of each row; ``log_p`` stands in where the probability itself rounds to 0."""
    tiny = torch.finfo(p.dtype).tiny
    return -(target * torch.where(p > tiny, p.clamp(min=tiny).log(), log_p)).sum(1)


class BagLoss(InterpolatedBagLoss):
    """The bag-level loss: the mean prediction of a bag against its mean response (rho = 0; see InterpolatedBagLoss)."""

    def __init__(
        self,
        base: Literal["squared", "cross-entropy"] | PerSample = "squared",
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(0.0, base, reduction)


class InstanceBagLoss(InterpolatedBagLoss):
    """The instance-level loss: every prediction against its bag's mean response (rho = 1; see InterpolatedBagLoss)."""

    def __init__(
        self,
        base: Literal["squared", "cross-entropy"] | PerSample = "squared",
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(1.0, base, reduction)
