"""The Poincare ball: its operations, and layers that lead into it and out of it.

The ball of curvature -c, c > 0, holds the points with |x| < 1 / sqrt(c). Formulas as in hyperbolic networks
(Ganea et al., 2018, arXiv:1805.09112; Khrulkov et al., 2020, arXiv:1904.02239). Points are the last axis; the
other axes broadcast. Computed in the dtype of the points: near the edge use float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError

EDGE = 1e-3  # how far, relatively, points are kept from the edge
TINY = 1e-15


def check_curvature(c: float) -> None:
    """InputError unless c is a finite number above 0."""
    if not 0 < c < math.inf:
        raise InputError(f"Poincare ball: c={c}; expected a finite number > 0")


def check_points(where: str, x: Tensor, c: float) -> None:
    """InputError unless the points (..., d) are finite floats inside the ball."""
    check_curvature(c)
    if not x.is_floating_point() or x.dim() < 1 or x.numel() == 0 or not torch.isfinite(x).all():
        raise InputError(f"{where}: points are {x.dtype} of shape {tuple(x.shape)}; expected finite floats (..., d)")
    if float(x.detach().norm(dim=-1).max()) >= 1 / math.sqrt(c):
        raise InputError(f"{where}: a point has norm {x.norm(dim=-1).max():.4g}; expected below {1 / math.sqrt(c):.4g}")


def _norm(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True).clamp(min=TINY)


def _square(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True)


def project(x: Float[Tensor, "*n d"], c: float) -> Float[Tensor, "*n d"]:
    """Points brought to norm (1 - 1e-3) / sqrt(c) at most."""
    most = (1 - EDGE) / math.sqrt(c)
    norm = _norm(x)
    return torch.where(norm > most, x / norm * most, x)


def mobius_add(x: Float[Tensor, "*n d"], y: Float[Tensor, "*n d"], c: float) -> Float[Tensor, "*n d"]:
    """x (+) y = ((1 + 2c<x,y> + c|y|^2) x + (1 - c|x|^2) y) / (1 + 2c<x,y> + c^2 |x|^2 |y|^2)."""
    xx, yy, xy = _square(x), _square(y), (x * y).sum(-1, keepdim=True)
    top = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
    return top / (1 + 2 * c * xy + c**2 * xx * yy).clamp(min=TINY)


def expmap0(u: Float[Tensor, "*n d"], c: float) -> Float[Tensor, "*n d"]:
    """exp_0(u) = tanh(sqrt(c) |u|) u / (sqrt(c) |u|)."""
    scaled = math.sqrt(c) * _norm(u)
    return torch.tanh(scaled) / scaled * u


def logmap0(x: Float[Tensor, "*n d"], c: float) -> Float[Tensor, "*n d"]:
    """The inverse of ``expmap0``: artanh(sqrt(c) |x|) x / (sqrt(c) |x|)."""
    scaled = math.sqrt(c) * _norm(x)
    return _artanh(scaled) / scaled * x


def expmap(p: Float[Tensor, "*n d"], u: Float[Tensor, "*n d"], c: float) -> Float[Tensor, "*n d"]:
    """exp_p(u) = p (+) tanh(sqrt(c) lambda_p |u| / 2) u / (sqrt(c) |u|), lambda_p = 2 / (1 - c |p|^2).

    ``u`` is a tangent vector at p: exp_0 at p = 0 has lambda = 2, so that this is ``expmap0(u)`` there.
    """
    norm, root = _norm(u), math.sqrt(c)
    return mobius_add(p, torch.tanh(root * norm / (1 - c * _square(p)).clamp(min=TINY)) / (root * norm) * u, c)


def _artanh(x: Tensor) -> Tensor:
    return torch.atanh(x.clamp(max=1 - (1e-5 if x.dtype == torch.float32 else 1e-12)))


def dist(x: Float[Tensor, "*n d"], y: Float[Tensor, "*n d"], c: float) -> Float[Tensor, "*n"]:
    """d(x, y) = (2 / sqrt(c)) artanh(sqrt(c) |-x (+) y|); 2 |x - y| as c goes to 0."""
    root = math.sqrt(c)
    return (2 / root * _artanh(root * _norm(mobius_add(-x, y, c))))[..., 0]


def poincare_mean(x: Float[Tensor, "n d"], c: float) -> Float[Tensor, " d"]:
    """The Einstein midpoint of points: their Klein coordinates weighted by Lorentz factors (Khrulkov et al., eq. 5)."""
    check_points("poincare_mean", x, c)
    klein = 2 * x / (1 + c * _square(x))
    factor = (1 - c * _square(klein)).clamp(min=TINY).rsqrt()
    middle = (factor * klein).sum(0) / factor.sum(0)
    return middle / (1 + (1 - c * _square(middle)).clamp(min=0).sqrt())


class _Riemannian(torch.autograd.Function):
    """The identity; backward the gradient times (1 - c |x|^2)^2 / 4, the inverse of the metric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.c = c
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * (1 - ctx.c * _square(x)).square() / 4, None


class ToPoincare(nn.Module):
    """Features (n, d) into the ball: clipped to norm ``clip_r``, mapped at a trainable base point, projected.

    u <- u min(1, r / |u|) (Guo et al., 2022, arXiv:2107.11472, eq. 6; None: not clipped); the base point, exp_0 of a
    parameter that starts at 0; the gradient that comes back is scaled to the ball's metric. Clipping is what keeps
    gradients from vanishing at the edge. Raises InputError for c or r not above 0.
    """

    def __init__(self, dim: int, c: float = 0.1, clip_r: float | None = 2.0) -> None:
        super().__init__()
        check_curvature(c)
        if clip_r is not None and not clip_r > 0:
            raise InputError(f"ToPoincare: clip_r={clip_r}; expected above 0, or None")
        self.c, self.clip_r = c, clip_r
        self.base = nn.Parameter(torch.zeros(dim))

    def forward(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        if self.clip_r is not None:
            u = u * (self.clip_r / _norm(u)).clamp(max=1)
        base = project(expmap0(self.base, self.c), self.c)
        return _Riemannian.apply(project(expmap(base, u, self.c), self.c), self.c)


class HyperbolicMLR(nn.Module):
    """Logits (n, k) of points (n, d) by their distances to k hyperplanes of the ball (Ganea et al., 2018, eq. 25).

    With p_k = exp_0(p'_k) and normal a_k (1 - c |p_k|^2), z = -p_k (+) x:
    (lambda_p |a_k| / sqrt(c)) arsinh(2 sqrt(c) <z, a_k> / ((1 - c |z|^2) |a_k|)); 4 <a_k, x - p_k> as c goes to 0.
    """

    def __init__(self, dim: int, classes: int = 2, c: float = 0.1) -> None:
        super().__init__()
        check_curvature(c)
        self.c = c
        self.point = nn.Parameter(torch.empty(classes, dim))
        self.normal = nn.Parameter(torch.empty(classes, dim))
        for parameter in (self.point, self.normal):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        root, p = math.sqrt(self.c), expmap0(self.point, self.c)
        conformal = 1 - self.c * _square(p)
        normal = self.normal * conformal
        z = mobius_add(-p, x[:, None], self.c)
        length = _norm(normal)[:, 0]
        angle = 2 * root * (z * normal).sum(-1) / ((1 - self.c * _square(z)[..., 0]).clamp(min=TINY) * length)
        return 2 / conformal[:, 0] * length / root * torch.asinh(angle)
