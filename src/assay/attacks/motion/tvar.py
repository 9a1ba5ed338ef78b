"""Time-varying autoregression of many trajectories at once, by kernel regression in rescaled time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

BANDWIDTHS = (0.15, 0.25, 0.4, 0.7, 1.2, 2.5, math.inf)
EQUATIONS = 2**20  # solved at once


@dataclass(frozen=True)
class FittedTVAR:
    """coef_ (n, order, t) float64: coef_[:, j - 1, s] weighs x_{s-j} in x_s, 0 for s < order; bandwidth_ (n,)."""

    coef_: Float[Tensor, "n order t"]
    bandwidth_: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class TVAR:
    """x_s = beta_1(s) x_{s-1} + ... + beta_p(s) x_{s-p} + e_s with coefficients that vary smoothly over time.

    The model of Lu et al. (2023, arXiv:2308.05681), whose code fits it with ``tvAR(type = "none", est = "ll")`` of the
    R package tvReg: no intercept, one weighted least-squares fit at every time. The m = t - p equations have the
    rescaled times 1/m, 2/m, ..., 1, and weigh (1 - (distance / bandwidth)^2)^3 (triweight). ``estimator`` "ll" is
    local-linear, each coefficient with a slope in time beside it; "lc" is local-constant. ``bandwidth`` is a share of
    the clip, above 0; infinite is one common fit of all times, for "lc" ordinary least squares. None chooses it for
    each trajectory among ``BANDWIDTHS`` by leave-one-out cross-validation. A trajectory that does not move gets
    coefficients 0. Equations that determine too little (a straight line under "ll") give the least of the solutions,
    by a ridge of 1e-10 of the mean diagonal.
    """

    order: int = 2
    bandwidth: float | None = None
    estimator: Literal["ll", "lc"] = "ll"

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order < 1:
            raise InputError(f"TVAR: order is {self.order!r}; expected a whole number >= 1")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise InputError(f"TVAR: bandwidth is {self.bandwidth}; expected a share of the clip above 0, or None")
        if self.estimator not in ("ll", "lc"):
            raise InputError(f"TVAR: estimator is {self.estimator!r}; expected 'll' or 'lc'")

    def fit(self, x: Float[Tensor, "n t"]) -> FittedTVAR:
        """Coefficients of the trajectories ``x``. InputError where t <= order + 2 or a value is not finite."""
        self._check(x)
        parts = [self._fit(rows) for rows in x.detach().double().split(max(EQUATIONS // x.shape[1], 1))]
        return FittedTVAR(torch.cat([p.coef_ for p in parts]), torch.cat([p.bandwidth_ for p in parts]))

    def _fit(self, x: Float[Tensor, "n t"]) -> FittedTVAR:
        target = x[:, self.order :]
        lags = torch.stack([x[:, self.order - j : x.shape[1] - j] for j in range(1, self.order + 1)], 2)
        if self.bandwidth is not None:
            beta, _ = self._solve(lags, target, self.bandwidth)
            chosen = torch.full((len(x),), self.bandwidth, dtype=torch.float64, device=x.device)
        else:
            beta, chosen = self._cross_validated(lags, target)
        beta[x.amax(1) - x.amin(1) <= 1e-9 * x.abs().amax(1)] = 0
        coef = torch.cat((beta.new_zeros(len(x), self.order, self.order), beta.mT), 2)
        return FittedTVAR(coef, chosen)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 2 or len(x) == 0:
            kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"TVAR: trajectories are {kind}; expected floats of shape (n, t) with n >= 1")
        if x.shape[1] <= self.order + 2:
            raise InputError(f"TVAR: {x.shape[1]} frames; expected more than order + 2 = {self.order + 2}")
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).any(1).sum())
            raise InputError(f"TVAR: {bad} of {len(x)} trajectories hold NaN or infinite values; expected finite")

    def _cross_validated(self, lags: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The fit of the bandwidth with the least leave-one-out error, for each trajectory."""
        best = torch.full((len(target),), math.inf, dtype=torch.float64, device=target.device)
        chosen, beta = best.clone(), torch.zeros_like(lags)
        m, unknowns = target.shape[1], self.order * (2 if self.estimator == "ll" else 1)
        for width in (b for b in BANDWIDTHS if b * m > unknowns + 1):
            found, own = self._solve(lags, target, width)
            rest = (target - (lags * found).sum(2)) / (1 - own).clamp_min(1e-3)
            error = rest.square().mean(1)
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(better, width, chosen)
            beta = torch.where(better[:, None, None], found, beta)
        return beta, chosen

    def _solve(self, lags: Tensor, target: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Coefficients (n, m, p) at every time, and the share (n, m) of each target in its own fit."""
        m, p = target.shape[1], self.order
        time = torch.arange(1, m + 1, device=lags.device, dtype=torch.float64) / m
        away = time[None, :] - time[:, None]
        kernel = (1 - (away / width).square()).clamp_min(0) ** 3
        squares, product = lags[..., :, None] * lags[..., None, :], lags * target[..., None]

        def moment(weights: Tensor, values: Tensor) -> Tensor:
            return torch.einsum("ti,ni...->nt...", weights, values)

        gram, right = moment(kernel, squares), moment(kernel, product)
        if self.estimator == "ll":
            cross, slope = moment(kernel * away, squares), moment(kernel * away.square(), squares)
            gram = torch.cat((torch.cat((gram, cross), 3), torch.cat((cross, slope), 3)), 2)
            right = torch.cat((right, moment(kernel * away, product)), 2)
        ridge = 1e-10 * gram.diagonal(dim1=2, dim2=3).mean(2).clamp_min(1e-300)
        gram = gram + ridge[..., None, None] * torch.eye(gram.shape[2], dtype=gram.dtype, device=gram.device)
        inner = torch.cat((lags, torch.zeros_like(lags)), 2)[..., : gram.shape[2]]
        both = torch.linalg.solve(gram, torch.stack((right, inner), 3))
        return both[:, :, :p, 0].contiguous(), (inner * both[..., 1]).sum(2)
