"""How informative unlabelled points are to a classifier, from its probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError, unknown

Gain = Literal["margin", "entropy", "confidence"]


def margin_gains(probs: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """1 - (p_(1) - p_(2)), in [0, 1]: the default of Baykal et al. (2022, arXiv:2210.01213).

    ``probs`` (n, c) are distributions, c >= 2; else InputError.
    """
    top = _checked(probs).topk(2, 1).values
    return 1 - (top[:, 0] - top[:, 1])


def entropy_gains(probs: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The entropy in units of log c, in [0, 1]."""
    p = _checked(probs)
    return (torch.special.entr(p).sum(1) / torch.log(torch.tensor(p.shape[1]).to(p))).clamp(0, 1)


def confidence_gains(probs: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """(1 - p_(1)) c / (c - 1), in [0, 1]: least confidence."""
    p = _checked(probs)
    return (1 - p.amax(1)) * (p.shape[1] / (p.shape[1] - 1))


GAINS: dict[Gain, Callable[[Tensor], Tensor]] = {
    "margin": margin_gains,
    "entropy": entropy_gains,
    "confidence": confidence_gains,
}


def check_gain(where: str, gain: str) -> None:
    """InputError unless ``gain`` is the name of one."""
    if gain not in GAINS:
        raise unknown(f"gain of {where}", gain, get_args(Gain))


def _checked(probs: Tensor) -> Float[Tensor, "n c"]:
    if probs.dim() != 2 or len(probs) == 0 or probs.shape[1] < 2 or not probs.is_floating_point():
        raise InputError(f"gains: probabilities are {probs.dtype} {tuple(probs.shape)}; expected floats (n, c), c >= 2")
    if not torch.isfinite(probs).all() or probs.min() < 0 or (probs.sum(1) - 1).abs().max() > 1e-3:
        raise InputError("gains: rows are no distributions; expected finite probabilities >= 0 that sum to 1")
    return probs.double()
