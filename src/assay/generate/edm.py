"""EDM: how a network becomes a denoiser, and how a denoiser is followed from noise to data (Karras et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import noise_levels
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable

Denoiser = Callable[[Tensor, Tensor], Tensor]
Perturb = Callable[[Tensor, Tensor], Tensor]


@rebuildable
class EDMPrecond(nn.Module):
    """D(x, s) = c_skip x + c_out F(c_in x, c_noise, labels) (Karras et al., 2022, arXiv:2206.00364, eq. 7, table 1).

    c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2), c_noise = ln(s) / 4, with
    d = ``sigma_data`` > 0 the spread of the data. ``net(x (n, ...), c_noise (n,), labels)`` gives a tensor like x, or
    an object that holds it as ``sample`` (as a diffusers UNet2DModel does).
    """

    def __init__(self, net: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        if not (math.isfinite(sigma_data) and sigma_data > 0):
            raise InputError(f"EDMPrecond: sigma_data={sigma_data}; expected a finite number > 0")
        self.net, self.sigma_data = net, float(sigma_data)

    def forward(
        self, x: Float[Tensor, "n ..."], sigma: Float[Tensor, " n"], labels: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n ..."]:
        """The denoised ``x``, in its dtype; ``sigma`` > 0. The network runs in the dtype of its parameters."""
        level = sigma.to(x.dtype)
        s = level.reshape(-1, *[1] * (x.dim() - 1))
        total, d = s.square() + self.sigma_data**2, self.sigma_data
        kind = next((p.dtype for p in self.net.parameters()), x.dtype)
        out = self.net((x / total.sqrt()).to(kind), (level.log() / 4).to(kind), labels)
        found: Tensor = getattr(out, "sample", out)
        if found.shape != x.shape:
            raise InputError(f"EDMPrecond: the network gives {tuple(found.shape)}; expected {tuple(x.shape)}, as its x")
        return d**2 / total * x + s * d / total.sqrt() * found.to(x.dtype)


def edm_sigmas(
    steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " steps+1"]:
    """The noise levels from ``sigma_max`` to ``sigma_min``, then 0 (eq. 5), float64.

    Raises InputError unless ``steps`` >= 2, 0 < ``sigma_min`` < ``sigma_max`` and ``rho`` > 0.
    """
    levels = noise_levels(steps, sigma_min, sigma_max, rho)
    return torch.cat((levels, torch.zeros_like(levels[:1])))


def edm_sampler(
    denoiser: Denoiser,
    x: Float[Tensor, "n ..."],
    *,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    perturb: Perturb | None = None,
) -> Float[Tensor, "n ..."]:
    """Follow dx/ds = (x - D(x, s)) / s from ``sigma_max`` to 0 by Heun's method (algorithm 1), in float64.

    ``x`` (n, ...), finite, is a draw of the prior at ``sigma_max``; ``denoiser(x, sigma (n,))`` gives a tensor like x.
    The last step, to 0, is Euler's: 2 ``steps`` - 1 evaluations in all. There is no churn: Gaussian noise would leave
    the law of the path for any kernel but the Gaussian. ``perturb(x, sigma)`` changes the state before each step.
    """
    check_inputs("edm_sampler", x)
    state = x.double()
    for now, then in pairwise(edm_sigmas(steps, sigma_min, sigma_max, rho)):
        if perturb is not None:
            state = perturb(state, now.expand(len(x)))
        slope = (state - denoiser(state, now.expand(len(x))).double()) / now
        guess = state + (then - now) * slope
        if then > 0:
            end = (guess - denoiser(guess, then.expand(len(x))).double()) / then
            guess = state + (then - now) * (slope + end) / 2
        state = guess
    return state
