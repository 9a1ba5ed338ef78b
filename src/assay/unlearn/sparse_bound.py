"""How far gradient-based unlearning of a sparse model can end from retraining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.compress.pruning import Masks
from assay.dynamics import Hessian
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


@dataclass(frozen=True)
class ErrorBound:
    """The scale eta^2 t ``distance`` ``sigma``, up to a constant, and its two factors that the mask shrinks."""

    value: float
    distance: float
    sigma: float


def flat_mask(model: nn.Module, masks: Masks) -> Float[Tensor, " p"]:
    """1 where a parameter stays, in the order of ``model.named_parameters()``; what no mask names stays."""
    strange = set(masks) - {name for name, _ in model.named_parameters()}
    if strange:
        raise InputError(f"mask of {sorted(strange)[0]!r}: the model has no such parameter; expected its names")
    parts = [masks.get(n, torch.ones_like(p, dtype=torch.bool)).flatten() for n, p in model.named_parameters()]
    return torch.cat(parts).double().cpu()


def masked_curvature(
    hessian: Hessian, keep: Float[Tensor, " p"], *, seed: int, steps: int = 100, tolerance: float = 1e-6
) -> float:
    """sigma(m): the largest magnitude of an eigenvalue of the Hessian restricted to the coordinates kept.

    Power iteration on m H m, from below, until the estimate moves by less than ``tolerance``, relative, or ``steps``.
    """
    v = keep * torch.randn(len(keep), generator=torch_rng(seed, "curvature"), dtype=torch.float64)
    if not v.any():
        return 0.0
    sigma = 0.0
    for _ in range(steps):
        v = v / v.norm()
        v = keep * hessian.product(v)
        grown, before = float(v.norm()), sigma
        sigma = max(sigma, grown)
        if grown == 0 or abs(grown - before) <= tolerance * sigma:
            break
    return sigma


def unlearning_error_bound(
    model: nn.Module,
    masks: Masks,
    start: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    lr: float,
    steps: int,
    seed: int = 0,
) -> ErrorBound:
    """eta^2 t ||m (theta_t - theta_0)|| sigma(m), which the error of unlearning by unrolled SGD is of the order of (Jia
    et al., 2023, arXiv:2304.04934, proposition 2).

    ``model`` holds theta_t, after ``steps`` steps at rate ``lr`` from ``start``, theta_0, where the curvature of the
    mean cross-entropy on (x, y) is taken. Both factors can only fall as the mask grows.
    """
    if not lr > 0 or steps < 1:
        raise InputError(f"unlearning_error_bound: lr={lr}, steps={steps}; expected lr > 0, steps >= 1")
    keep = flat_mask(model, masks)
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    moved = torch.cat([(a.detach() - b.detach()).flatten().double().cpu() for a, b in pairs])
    distance = float((keep * moved).norm())
    sigma = masked_curvature(Hessian(model=start, x=x, y=y), keep, seed=seed)
    return ErrorBound(lr**2 * steps * distance * sigma, distance, sigma)
