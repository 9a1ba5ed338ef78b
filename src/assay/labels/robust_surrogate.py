"""The robust loss of a differentiable model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating


def robust_surrogate(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    gamma: float,
    *,
    steps: int = 10,
    step_size: float = 0.1,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n ..."]]:
    """phi_gamma = sup_Z CE(Z, y) - gamma |Z - X|^2 and the Z (n, ...) it is taken at (Saberi et al., 2024,
    arXiv:2310.00027, with the inner maximisation of Sinha et al., 2018, arXiv:1710.10571, algorithm 1).

    ``steps`` gradient steps of ``step_size`` from X, in evaluation mode; the least sup is certain only where gamma is
    large enough for the objective to be concave. The loss (n,) has slopes with respect to the weights, at fixed Z. An
    infinite gamma gives Z = X and the cross-entropy. InputError unless gamma, step_size > 0 and steps >= 1.
    """
    if not gamma > 0 or steps < 1 or not 0 < step_size < math.inf:
        given = f"gamma={gamma}, steps={steps}, step_size={step_size}"
        raise InputError(f"robust_surrogate: {given}; expected gamma, step_size > 0, steps >= 1")
    if gamma == math.inf:
        return F.cross_entropy(model(x), y, reduction="none"), x.detach()
    z = x.detach()
    with evaluating(model), torch.enable_grad():
        for _ in range(steps):
            z = z.clone().requires_grad_()
            level = F.cross_entropy(model(z), y, reduction="sum") - gamma * (z - x).square().sum()
            (slope,) = torch.autograd.grad(level, z)
            z = z.detach() + step_size * slope
    z = z.detach()
    cost = gamma * (z - x).flatten(1).square().sum(1)
    return F.cross_entropy(model(z), y, reduction="none") - cost, z
