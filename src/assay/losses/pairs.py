"""What losses on logits share, on one set or on a sample's and its perturbed copy's: checks, divergence, reduction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(where: str, reduction: str) -> None:
    """InputError unless ``reduction`` is mean, sum or none."""
    if reduction not in REDUCTIONS:
        raise InputError(f"{where}: reduction={reduction!r}; expected mean, sum or none")


def check_logits(where: str, logits: Tensor, target: Tensor | None = None) -> None:
    """``logits`` (n, c) are finite floats, n >= 1, c >= 2; ``target`` (n,) int64 in [0, c). InputError otherwise."""
    if logits.dim() != 2 or len(logits) == 0 or logits.shape[1] < 2 or not logits.is_floating_point():
        shape = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise InputError(f"{where}: logits are {shape}; expected floats (n, c) with n >= 1, c >= 2")
    if not torch.isfinite(logits).all():
        raise InputError(f"{where}: logits hold NaN or infinite values; expected finite")
    if target is not None:
        check_labels(where, target, len(logits), logits.shape[1])


def check_pair(where: str, logits: Tensor, other: Tensor, target: Tensor) -> None:
    """Both logits are as ``check_logits`` has them, and of one shape."""
    check_logits(where, logits, target)
    check_logits(where, other)
    if other.shape != logits.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(other.shape)}"
        raise InputError(f"{where}: logits of shapes {shapes}; expected the same shape")


def divergence(logits: Float[Tensor, "n c"], other: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """KL(softmax(logits) || softmax(other)) of each sample, with gradients even where a probability rounds to 0."""
    return F.kl_div(other.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def reduced(loss: Float[Tensor, " n"], reduction: str) -> Tensor:
    """The mean, the sum, or the losses as they are."""
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
