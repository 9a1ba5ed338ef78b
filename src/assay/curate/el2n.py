"""EL2N: how far the predictions of briefly trained networks are from the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict

Order = Literal[1, 2, "max-margin", "sum-margin"]
ORDERS: tuple[Order, ...] = (1, 2, "max-margin", "sum-margin")


def el2n_scores(
    source: Sequence[nn.Module] | Float[Tensor, "k n c"],
    x: Float[Tensor, "n ..."] | None,
    y: Int[Tensor, " n"],
    *,
    batch_size: int = 512,
    ord: Order = 2,
) -> Float[Tensor, " n"]:
    """The mean over K networks of ||softmax(f(x)) - onehot(y)|| (Paul et al., 2021, arXiv:2107.07075, definition 2.2).

    ``source`` holds networks of logits (they run in evaluation mode, without augmentation) or their probabilities
    (K, n, c), for which ``x`` is None. ``ord`` 2 is EL2N, in [0, sqrt 2]; the official code's variants are 1, the L1
    norm, in [0, 2]; "max-margin", the highest p of another class minus p_y; and "sum-margin", their sum minus p_y, both
    in [-1, 1]. Raises InputError for no network, labels that are no class, and what is not a distribution.
    """
    return el2n_runs(source, x, y, batch_size=batch_size, ord=ord).mean(0)


def el2n_runs(
    source: Sequence[nn.Module] | Float[Tensor, "k n c"],
    x: Float[Tensor, "n ..."] | None,
    y: Int[Tensor, " n"],
    *,
    batch_size: int = 512,
    ord: Order = 2,
) -> Float[Tensor, "k n"]:
    """The scores of each network alone; see ``el2n_scores``."""
    if ord not in ORDERS:
        raise unknown("ord of EL2N", str(ord), map(str, ORDERS))
    if isinstance(source, Tensor):
        probs = source
    else:
        probs = _probabilities(source, x, batch_size)
    _check(probs, y)
    others = torch.ones_like(probs, dtype=torch.bool)
    others[:, torch.arange(len(y)), y] = False
    if ord == "max-margin":
        return probs.where(others, -torch.inf).amax(2) - probs[:, torch.arange(len(y)), y]
    if ord == "sum-margin":
        return probs.where(others, 0.0).sum(2) - probs[:, torch.arange(len(y)), y]
    return (probs - (~others).to(probs)).norm(ord, dim=2)


def _probabilities(models: Sequence[nn.Module], x: Tensor | None, batch_size: int) -> Float[Tensor, "k n c"]:
    if not models or x is None:
        raise InputError(f"EL2N: {len(models)} networks, x {type(x).__name__}; expected at least one network, and x")
    check_inputs("EL2N", x)
    return torch.stack([predict(model, x, batch_size=batch_size).double().softmax(1) for model in models])


def _check(probs: Tensor, y: Tensor) -> None:
    if probs.dim() != 3 or not probs.is_floating_point() or 0 in probs.shape:
        raise InputError(f"EL2N: probabilities are {probs.dtype} {tuple(probs.shape)}; expected floats (K, n, c)")
    check_labels("EL2N", y, probs.shape[1], probs.shape[2])
    if not torch.isfinite(probs).all() or probs.min() < 0 or (probs.sum(2) - 1).abs().max() > 1e-3:
        raise InputError("EL2N: the probabilities are no distributions; expected finite values >= 0 that sum to 1")
