"""Gradients from values alone: estimates of the gradient of each sample's loss with respect to a code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

PointLoss = Callable[[Tensor], Tensor]
CHUNK = 4096


def _values(loss_fn: PointLoss, points: Float[Tensor, "n k d"], shape: torch.Size) -> Float[Tensor, "n k"]:
    """The losses, float64, of k points for each of n samples: the rows of a sample follow one another."""
    n, k = points.shape[:2]
    with torch.no_grad():
        values = loss_fn(points.reshape(n * k, *shape[1:]))
    if not isinstance(values, Tensor) or values.shape != (n * k,):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"zeroth-order gradient: the loss gives {found} for {n * k} points; expected ({n * k},)")
    return values.double().reshape(n, k)


def _check(z: Tensor, mu: float, chunk: int) -> None:
    if z.dim() < 2 or len(z) == 0 or not z.is_floating_point():
        raise InputError(f"zeroth-order gradient: z is {z.dtype} {tuple(z.shape)}; expected floats (n, ...), n >= 1")
    if not mu > 0 or chunk < 1:
        raise InputError(f"zeroth-order gradient: mu = {mu}, chunk = {chunk}; expected mu > 0 and chunk >= 1")


def cge_gradient(
    loss_fn: PointLoss, z: Float[Tensor, "n ..."], mu: float = 5e-3, chunk: int = CHUNK
) -> Float[Tensor, "n ..."]:
    """Coordinate-wise estimate: (l(z + mu e_k) - l(z - mu e_k)) / (2 mu) for every coordinate k of every sample
    (Zhang et al., 2022, arXiv:2203.14195, eq. 4; the two-sided form of the official code). 2 d values a sample.

    ``loss_fn`` maps points (m, ...) to their losses (m,) and is called without a graph, on about ``chunk`` points at
    once. The points of one sample follow one another and every sample has equally many, so that a sample's target
    belongs to ``m // n`` rows (``repeat_interleave``). The official code averages over the coordinates where this sums:
    its estimate is the gradient over d. Where the loss is float32, mu below 1e-3 gives noise of rounding.
    """
    _check(z, mu, chunk)
    flat = z.detach().flatten(1)
    n, d = flat.shape
    parts = []
    for rows in torch.arange(d, device=z.device).split(max(1, chunk // (2 * n))):
        step = torch.zeros(len(rows), d, dtype=z.dtype, device=z.device)
        step[torch.arange(len(rows)), rows] = mu
        points = flat[:, None] + torch.cat((step, -step))
        up, down = _values(loss_fn, points, z.shape).chunk(2, 1)
        parts.append((up - down) / (2 * mu))
    return torch.cat(parts, 1).to(z).reshape(z.shape)


def rge_gradient(
    loss_fn: PointLoss,
    z: Float[Tensor, "n ..."],
    q: int = 192,
    mu: float = 5e-3,
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
) -> Float[Tensor, "n ..."]:
    """Randomised estimate: d / (mu q) times the sum over q directions u of (l(z + mu u) - l(z)) u, each u uniform on
    the unit sphere, drawn for every sample alone (Zhang et al., 2022, arXiv:2203.14195, eq. 3). q + 1 values a sample.

    Of a linear loss a z the mean is a, and the mean squared error (d - 1) |a|^2 / q. For ``loss_fn`` and ``chunk`` see
    ``cge_gradient``. Numbers come from ``generator``; none: seed 0.
    """
    _check(z, mu, chunk)
    if q < 1:
        raise InputError(f"rge_gradient: q = {q}; expected at least one direction")
    flat = z.detach().flatten(1)
    n, d = flat.shape
    drawn = torch.Generator(z.device).manual_seed(0) if generator is None else generator
    base, total = _values(loss_fn, flat[:, None], z.shape), torch.zeros(n, d, dtype=torch.float64, device=z.device)
    for part in torch.arange(q).split(max(1, chunk // n)):
        u = torch.randn(n, len(part), d, generator=drawn, dtype=z.dtype, device=z.device)
        u = u / u.norm(dim=2, keepdim=True)
        change = _values(loss_fn, flat[:, None] + mu * u, z.shape) - base
        total += torch.einsum("nk,nkd->nd", change, u.double())
    return (total * (d / (mu * q))).to(z).reshape(z.shape)


def zo_surrogate_loss(z: Float[Tensor, "n ..."], ghat: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """The mean over samples of <z, ghat> with ghat held fixed: its gradient is (dz/dtheta)^T ghat, the chain rule with
    an estimate in place of the black box (Zhang et al., 2022, arXiv:2203.14195, eq. 5)."""
    if z.shape != ghat.shape:
        raise InputError(f"zo_surrogate_loss: z is {tuple(z.shape)}, ghat {tuple(ghat.shape)}; expected equal shapes")
    return (z * ghat.detach()).flatten(1).sum(1).mean()
