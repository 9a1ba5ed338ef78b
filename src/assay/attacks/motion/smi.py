"""The skeleton-motion-informed gradient: a gradient that knows how later frames depend on earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.attacks.motion.tvar import TVAR
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError


def motion_responses(coefs: Float[Tensor, "n p t"]) -> Float[Tensor, "p n t"]:
    """dx_{s+k} / dx_s for k = 1..p under x_s = sum_j coefs[:, j - 1, s] x_{s-j} + e_s; 0 past the last frame.

    The chain rule through the lags: D_k(s) = sum_{j <= k} beta_j(s+k) D_{k-j}(s) with D_0 = 1. So D_1(s) is
    beta_1(s+1) and D_2(s) is beta_1(s+2) beta_1(s+1) + beta_2(s+2).
    """
    _, p, t = coefs.shape
    passed = [torch.ones_like(coefs[:, 0])]
    for k in range(1, p + 1):
        ahead = torch.zeros_like(coefs)
        ahead[..., : max(t - k, 0)] = coefs[..., k:]
        passed.append(torch.stack([ahead[:, j - 1] * passed[k - j] for j in range(1, k + 1)]).sum(0))
    return torch.stack(passed[1:])


def smi(grad: Tensor, *coefs: Tensor, time_dim: int = 2) -> Tensor:
    """grad_s + sum_k coefs_k(s) grad_{s+k}: what the frames that follow s add to its gradient.

    Lu et al. (2023, arXiv:2308.05681). coefs_k, shaped as ``grad``, is dx_{s+k} / dx_s, the k-th of
    ``motion_responses``; none gives ``grad`` itself, one the first-order form, two the second. Past the last frame
    gradients count as 0. InputError for other shapes.
    """
    if not -grad.dim() <= time_dim < grad.dim():
        raise InputError(f"smi: time_dim is {time_dim}; expected a dimension of a gradient of {tuple(grad.shape)}")
    total, frames = grad, grad.shape[time_dim]
    for k, coef in enumerate(coefs, 1):
        if coef.shape != grad.shape:
            raise InputError(f"smi: coefficients of shape {tuple(coef.shape)}; expected {tuple(grad.shape)}")
        later = torch.zeros_like(grad)
        if k < frames:
            later.narrow(time_dim, 0, frames - k).copy_(grad.narrow(time_dim, k, frames - k))
        total = total + coef * later
    return total


@dataclass(frozen=True, kw_only=True)
class SMIGradient:
    """How a motion passes a change of one frame on to the next ``order`` ones (Lu et al., 2023, arXiv:2308.05681).

    Every trajectory, a coordinate over the dimension ``time_dim``, gets a time-varying autoregression of each order up
    to ``order`` (see TVAR): frame s takes its coefficients from that of order min(s, order), as the authors' code does
    for order 2. ``order`` 0 is the plain gradient, 1 the authors' S1MI, 2 S2MI; higher ones follow from the chain rule.
    ``bandwidth`` and ``estimator`` as in TVAR.
    """

    order: int = 2
    bandwidth: float | None = None
    estimator: Literal["ll", "lc"] = "ll"
    time_dim: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order < 0:
            raise InputError(f"SMIGradient: order is {self.order!r}; expected a whole number >= 0")
        if self.time_dim < 1:
            raise InputError(f"SMIGradient: time_dim is {self.time_dim}; expected a dimension after the first")
        TVAR(bandwidth=self.bandwidth, estimator=self.estimator)

    def responses(self, x: Float[Tensor, "n ..."], frames: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n p ..."]:
        """dx_{s+k} / dx_s of every entry of ``x``, k = 1..order, shaped (n, order, *x.shape[1:]).

        ``frames`` (n,) are the real frames of each clip, that the rest of it repeats: the model is fitted to these
        only, and its responses are repeated as the frames are. InputError where a clip has order + 2 of them or fewer.
        """
        check_inputs("SMIGradient", x)
        if self.time_dim >= x.dim():
            raise InputError(f"SMIGradient: time_dim is {self.time_dim}; expected a dimension of {tuple(x.shape)}")
        out = x.new_zeros(self.order, *x.shape)
        if self.order == 0:
            return out.movedim(0, 1)
        t = x.shape[self.time_dim]
        lengths = torch.full((len(x),), t) if frames is None else frames.cpu()
        if lengths.shape != (len(x),) or int(lengths.max()) > t:
            raise InputError(f"SMIGradient: frames are {lengths.tolist()[:3]}...; expected one number up to {t} a clip")
        for length in lengths.unique().tolist():
            rows = torch.where(lengths == length)[0].to(x.device)
            paths = x[rows].movedim(self.time_dim, -1)[..., :length]
            found = self._of_trajectories(paths.flatten(0, -2)).unflatten(1, paths.shape[:-1])
            tiled = found[..., torch.arange(t, device=x.device) % length]
            out[:, rows] = tiled.movedim(-1, self.time_dim + 1).to(x)
        return out.movedim(0, 1)

    def _of_trajectories(self, paths: Float[Tensor, "m t"]) -> Float[Tensor, "p m t"]:
        coefs = paths.new_zeros(len(paths), self.order, paths.shape[1], dtype=torch.float64)
        for order in range(1, self.order + 1):
            found = TVAR(order=order, bandwidth=self.bandwidth, estimator=self.estimator).fit(paths).coef_
            coefs[:, :order, order:] = found[..., order:]
        return motion_responses(coefs)

    def combine(self, grad: Float[Tensor, "n ..."], responses: Float[Tensor, "n p ..."]) -> Float[Tensor, "n ..."]:
        """The motion-informed gradient of ``grad`` under ``responses``."""
        return smi(grad, *responses.unbind(1), time_dim=self.time_dim)
