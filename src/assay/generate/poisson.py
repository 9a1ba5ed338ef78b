"""The perturbation kernel of PFGM++, its posterior over data, and the electric field that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.special import betaln
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError

Level = float | Tensor


@dataclass(frozen=True)
class PerturbationKernel:
    """p_r(x | y) ~ (|x - y|^2 + r^2)^(-(N+D)/2), r = sigma sqrt(D) (Xu et al., 2023, arXiv:2302.04265, section 3.2).

    ``N`` >= 1 data dimensions; ``D`` > 0 extra ones, not necessarily whole: 1 is PFGM, ``math.inf`` is diffusion, i.e.
    N(y, sigma^2 I), which the alignment r = sigma sqrt(D) makes the limit (section 4). It is the multivariate Student-t
    with D degrees of freedom, location y and scale matrix sigma^2 I; for D <= 2 its variance is infinite. ``clip`` cuts
    the Beta draw B of the sampler to [clip, 1 - clip], which shortens both tails; the official code has 1e-3.
    Near D = 1 the sampler needs it: it brings back no start that lies further out than sigma_max / sigma_min.

    Points are flat, (n, N); ``sigma`` is one number > 0 or one for each row (n,). Everything is computed in float64 and
    in log space. Raises InputError for other shapes and ranges and for values that are not finite.
    """

    N: int
    D: float
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.N < 1 or not self.D > 0:
            raise InputError(f"PerturbationKernel: N={self.N}, D={self.D}; expected N >= 1, D > 0 (or math.inf)")
        if self.clip is not None and not 0 < self.clip < 0.5:
            raise InputError(f"PerturbationKernel: clip={self.clip}; expected 0 < clip < 0.5, or None")

    def radius(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """r = sigma sqrt(D), the norm of the extra coordinates at noise level ``sigma``; D finite."""
        return sigma * math.sqrt(self.D)

    def sample(
        self, y: Float[Tensor, "n N"], sigma: Level, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n N"]:
        """x ~ p_r(. | y), one for each row, float64: x = y + R u with u uniform on the sphere (appendix B).

        R = r sqrt(B / (1 - B)), B ~ Beta(N/2, D/2). B / (1 - B) is drawn as a ratio of Gamma variables, which loses no
        digits where B is next to 1. Draws are made on the CPU, from ``generator`` (absent: torch's own).
        """
        y, sigma = self._checked("sample", y, sigma)
        z = torch.randn(y.shape, dtype=torch.float64, generator=generator)
        if math.isinf(self.D):
            return y + sigma[:, None] * z.to(y.device)
        near, far = (torch.full((len(y),), k / 2, dtype=torch.float64) for k in (self.N, self.D))
        odds = torch._standard_gamma(near, generator=generator) / torch._standard_gamma(far, generator=generator)
        if self.clip is not None:
            odds = odds.clamp(self.clip / (1 - self.clip), (1 - self.clip) / self.clip)
        step = odds.sqrt()[:, None] * z / z.norm(dim=1, keepdim=True)
        return y + self.radius(sigma)[:, None] * step.to(y.device)

    def prior(self, n: int, sigma_max: float, generator: torch.Generator | None = None) -> Float[Tensor, "n N"]:
        """Where sampling starts, at ``sigma_max``: the kernel around 0, Gaussian only for D = inf (section 4)."""
        return self.sample(torch.zeros(n, self.N, dtype=torch.float64), sigma_max, generator)

    def log_prob(self, x: Float[Tensor, "n N"], y: Float[Tensor, "n N"], sigma: Level) -> Float[Tensor, " n"]:
        """ln p_r(x | y), normalised over R^N; float64."""
        x, sigma = self._checked("log_prob", x, sigma)
        y = self._points("log_prob", y)
        if x.shape != y.shape:
            raise InputError(f"log_prob: x is {tuple(x.shape)}, y {tuple(y.shape)}; expected the same shape")
        square = (x - y).square().sum(1)
        half = self.N / 2
        if math.isinf(self.D):
            return -square / (2 * sigma**2) - half * (2 * math.pi * sigma**2).log()
        # Gamma((N+D)/2) / Gamma(D/2) through the Beta function, which keeps its digits for D of any size.
        constant = math.lgamma(half) - float(betaln(half, self.D / 2)) - half * math.log(math.pi)
        return constant - self.N * self.radius(sigma).log() + self._exponent(square, sigma)

    def posterior(
        self,
        x: Float[Tensor, "n N"],
        data: Float[Tensor, "m N"],
        sigma: Level,
        among: Bool[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, "n m"]:
        """P(y = data_j | x) under equal weights: ~ p_r(x | data_j), row by row; float64.

        ``among``: which rows of ``data`` each x may come from, at least one (absent: all).
        """
        x, sigma = self._checked("posterior", x, sigma)
        data = self._points("posterior", data)
        square = torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist").square()
        exponent = self._exponent(square, sigma[:, None])
        if among is not None:
            if among.shape != square.shape or among.dtype != torch.bool or not among.any(1).all():
                raise InputError(
                    f"PerturbationKernel.posterior: among is {among.dtype} {tuple(among.shape)}; "
                    f"expected bool {tuple(square.shape)}, true at least once a row"
                )
            exponent = exponent.masked_fill(~among, -math.inf)
        return exponent.softmax(1)

    def posterior_mean(
        self,
        x: Float[Tensor, "n N"],
        data: Float[Tensor, "m N"],
        sigma: Level,
        among: Bool[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, "n N"]:
        """E[y | x] over the rows of ``data``: what the best denoiser gives (section 3.2), float64."""
        return self.posterior(x, data, sigma, among) @ data.double()

    def _exponent(self, square: Tensor, sigma: Tensor) -> Tensor:
        """ln of (1 + square / r^2)^(-(N+D)/2), or of its limit."""
        if math.isinf(self.D):
            return -square / (2 * sigma**2)
        return -(self.N + self.D) / 2 * torch.log1p(square / self.radius(sigma).square())

    def _points(self, where: str, x: Tensor) -> Float[Tensor, "n N"]:
        check_inputs(f"PerturbationKernel.{where}", x)
        if x.dim() != 2 or x.shape[1] != self.N:
            raise InputError(f"PerturbationKernel.{where}: points have shape {tuple(x.shape)}; expected (n, {self.N})")
        return x.double()

    def _checked(self, where: str, x: Tensor, sigma: Level) -> tuple[Float[Tensor, "n N"], Float[Tensor, " n"]]:
        x = self._points(where, x)
        level = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
        if level.shape not in ((), (len(x),)) or not (torch.isfinite(level).all() and (level > 0).all()):
            shape = f"of shape {tuple(level.shape)}" if level.dim() else f"{float(level)}"
            raise InputError(
                f"PerturbationKernel.{where}: sigma is {shape}; expected finite numbers > 0, one or {len(x)}"
            )
        return x, level.expand(len(x))


def posterior_gap(x: Float[Tensor, "n N"], data: Float[Tensor, "m N"], sigma: Level, D: float) -> Float[Tensor, " n"]:
    """How far the model of ``D`` is from diffusion at ``x``: total variation between their posteriors over ``data``.

    In [0, 1], 0 for D = inf; its mean over x over the noise levels is the paper's measure of how alike the two are
    (section 5). For shapes and errors see PerturbationKernel.
    """
    size = x.shape[-1]
    here, there = (PerturbationKernel(size, d).posterior(x, data, sigma) for d in (D, math.inf))
    return (here - there).abs().sum(1) / 2


def pfgm_field(x: Float[Tensor, "n N"], r: Level, data: Float[Tensor, "m N"], D: float) -> Float[Tensor, "n N+1"]:
    """The electric field of ``data`` at (x, r) in N + D dimensions: N components along x, one along r (section 3.1).

    E(x, r) ~ mean_j (x - y_j, r) / (|x - y_j|^2 + r^2)^((N+D)/2), here divided by the mean of its weights, which is
    positive and leaves its direction: the result is (x - E[y | x, r], r), of slope dx/dr = (x - E[y | x, r]) / r.
    ``D`` > 0 finite; for errors see PerturbationKernel.
    """
    if not 0 < D < math.inf:
        raise InputError(f"pfgm_field: D={D}; expected a finite number > 0, where r is")
    sigma = torch.as_tensor(r, dtype=torch.float64) / math.sqrt(D)
    mean = PerturbationKernel(x.shape[-1], D).posterior_mean(x, data, sigma)
    height = (sigma * math.sqrt(D)).to(mean.device).expand(len(x))
    return torch.cat((x.double() - mean, height[:, None]), 1)
