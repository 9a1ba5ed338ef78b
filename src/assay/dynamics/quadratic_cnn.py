"""A two-layer network whose units are squares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.runtime.spec import rebuildable


@rebuildable
class QuadraticCNN(nn.Module):
    """F_k(x) = sum over r and p of <w_kr, x^(p)>^2, k = 1, 2 (Zou et al., 2023, arXiv:2303.08433).

    ``weight`` (2, m, d) starts at N(0, ``sigma_0``^2) entries. Samples (n, p, d) give logits (n, 2). InputError unless
    d and m are at least 1 and sigma_0 is above 0: at 0 all gradients vanish.
    """

    def __init__(self, d: int, m: int = 8, sigma_0: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        if d < 1 or m < 1 or not 0 < sigma_0 < float("inf"):
            raise InputError(f"QuadraticCNN: d={d}, m={m}, sigma_0={sigma_0}; expected d, m >= 1, sigma_0 > 0")
        self.weight = nn.Parameter(sigma_0 * torch.randn(2, m, d, generator=torch_rng(seed, "quadratic-cnn")))

    def energy(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, "n p 2"]:
        """sum_r <w_kr, x^(p)>^2 of each patch, for both classes k."""
        products = x @ self.weight.flatten(0, 1).T
        return products.unflatten(2, self.weight.shape[:2]).square().sum(3)

    def forward(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, "n 2"]:
        return self.energy(x).sum(1)
