"""The least error that any classifier can have, estimated from labelled points or from soft labels."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.losses import KernelBayesError
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError


def bayes_error_kde(
    x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], h: float | Literal["median", "loo"] = "loo"
) -> float:
    """The leave-one-out kernel estimate with bandwidth ``h`` in the units of ``x``; see KernelBayesError."""
    return KernelBayesError(sigma=h)(x.flatten(1), y)


def bayes_error_knn(x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], k: int = 1) -> tuple[float, float]:
    """Between which the Bayes error lies by the leave-one-out error e of the ``k`` nearest neighbours, for many points:
    (C - 1) / C (1 - sqrt(1 - C e / (C - 1))) and e (Cover & Hart, 1967).

    The bound is that of k = 1; it holds for larger k too, whose error is between the two, and is looser below. Ties go
    to the lowest class. C counts the classes that have points. Raises InputError unless 1 <= k < n and C >= 2.
    """
    check_inputs("bayes_error_knn", x)
    check_labels("bayes_error_knn", y, len(x))
    classes = len(y.unique())
    if not 1 <= k < len(x) or classes < 2:
        raise InputError(
            f"bayes_error_knn: k={k}, {len(x)} points, {classes} classes; expected 1 <= k < n, two classes"
        )
    u = x.flatten(1).double()
    rows = torch.arange(len(u)).split(1024)
    far = (
        torch.cdist(u[r], u, compute_mode="donot_use_mm_for_euclid_dist").scatter(1, r[:, None], torch.inf)
        for r in rows
    )
    near = [distance.topk(k, 1, largest=False).indices for distance in far]
    named = y[torch.cat(near)]
    votes = torch.zeros(len(y), int(y.max()) + 1, dtype=torch.int64).scatter_add_(1, named, torch.ones_like(named))
    error = float((votes.argmax(1) != y).double().mean())
    inside = max(1 - classes * error / (classes - 1), 0.0)
    return (classes - 1) / classes * (1 - inside**0.5), error


def bayes_error_soft(p: Float[Tensor, "n c"]) -> float:
    """1 - mean over samples of the largest probability, from soft labels whose rows sum to 1."""
    check_inputs("bayes_error_soft", p)
    if p.dim() != 2 or p.min() < 0 or not torch.allclose(p.sum(1), torch.ones(len(p)).to(p), atol=1e-5):
        raise InputError(f"bayes_error_soft: p of shape {tuple(p.shape)}; expected probabilities (n, c), rows of sum 1")
    return float(1 - p.double().amax(1).mean())
