"""The nearest weights of a given sum between 0 and a cap."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

HALVINGS = 100


def project_capped_simplex(a: Float[Tensor, " n"], m: float, upper: float = 1.0) -> Float[Tensor, " n"]:
    """The point of {w: 0 <= w <= ``upper``, sum w = ``m``} that is nearest to ``a``, in float64.

    w = clip(a - mu, 0, upper), the shift mu by bisection on [min a - upper, max a] (Fan et al., 2024, arXiv:2403.07362;
    the official code stops at an interval of 1e-5, this one at rounding), then once more from the sum over the entries
    strictly between the bounds. Raises InputError where ``a`` is not a finite vector or ``m`` not in [0, upper n].
    """
    if not isinstance(a, Tensor) or a.dim() != 1 or len(a) == 0 or not torch.isfinite(a).all():
        raise InputError("project_capped_simplex: a is no finite vector; expected (n,) numbers with n >= 1")
    if not (upper > 0 and 0 <= m <= upper * len(a)):
        raise InputError(
            f"project_capped_simplex: m={m}, upper={upper}; expected upper > 0 and m from 0 to {upper * len(a)}"
        )
    a = a.double()
    low, high = a.min() - upper, a.max()
    for _ in range(HALVINGS):
        mu = (low + high) / 2
        enough = (a - mu).clamp(0, upper).sum() >= m
        low, high = torch.where(enough, mu, low), torch.where(enough, high, mu)
    mu = (low + high) / 2
    free = (a > mu) & (a < mu + upper)
    if free.any():
        mu = (a[free].sum() + upper * (a >= mu + upper).sum() - m) / free.sum()
    return (a - mu).clamp(0, upper)
