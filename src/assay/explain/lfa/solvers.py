"""The minimisers of the local losses over a linear or logistic g, for many inputs at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.explain.lfa.sample import LocalSample
from assay.runtime.errors import InputError
from assay.training import Plan, State, fit

Coefficients = tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]


def least_squares(sample: LocalSample, *, ridge: float, intercept: bool) -> Coefficients:
    """Weighted least squares of the responses on the noise.

    ``ridge`` is relative to the mean square of the noise, so that no unit matters; the intercept bears none.
    """
    xi, y, weight = sample.xi, sample.observed, sample.weight
    mean_xi, mean_y = torch.einsum("nk,nkd->nd", weight, xi), (weight * y).sum(1)
    if intercept:
        xi, y = xi - mean_xi[:, None], y - mean_y[:, None]
    w = _solve(xi, y, weight, ridge)
    return w, mean_y - (w * mean_xi).sum(1) if intercept else torch.zeros_like(mean_y)


def anchored_least_squares(sample: LocalSample, *, ridge: float) -> Coefficients:
    """The same with g = f at xi = 0 and at xi = 1 exactly: the last weight is eliminated.

    These are KernelSHAP's constraints (Lundberg & Lee, 2017, arXiv:1705.07874, theorem 2).
    """
    rise = sample.at_x - sample.at_zero
    last = sample.xi[..., -1]
    y = sample.observed - sample.at_zero[:, None] - last * rise[:, None]
    w = _solve(sample.xi[..., :-1] - last[..., None], y, sample.weight, ridge)
    return torch.cat((w, (rise - w.sum(1))[:, None]), 1), sample.at_zero


def _solve(xi: Tensor, y: Tensor, weight: Tensor, ridge: float) -> Float[Tensor, "n d"]:
    d = xi.shape[2]
    if d == 0:
        return xi.new_zeros(len(xi), 0)
    weighted = weight[..., None] * xi
    normal = torch.einsum("nki,nkj->nij", weighted, xi)
    scale = normal.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(xi.dtype).tiny)
    normal = normal / scale[:, None, None] + ridge * torch.eye(d, dtype=xi.dtype, device=xi.device)
    right = torch.einsum("nkd,nk->nd", weighted, y) / scale[:, None]
    spectrum = torch.linalg.eigvalsh(normal)
    if (spectrum[:, 0] <= d * torch.finfo(xi.dtype).eps * spectrum[:, -1]).any():
        raise InputError("least squares: the noise does not span the features; expected more n_samples or a ridge > 0")
    return torch.linalg.solve(normal, right)


def mean_gradient(sample: LocalSample) -> Coefficients:
    """Gradient matching by a linear g: the mean gradient. The loss leaves the intercept free: here it is zero."""
    w = torch.einsum("nk,nkd->nd", sample.weight, sample.observed)
    return w, torch.zeros_like(sample.at_x)


@dataclass(frozen=True)
class Surrogate:
    """g(xi) = link(w . xi + b), linear or logistic, for n inputs."""

    logistic: bool
    intercept: bool = True

    def values(self, xi: Float[Tensor, "n k d"], w: Float[Tensor, "n d"], b: Float[Tensor, " n"]) -> Tensor:
        """g at the noise, (n, k)."""
        score = torch.einsum("nkd,nd->nk", xi, w) + b[:, None]
        return score.sigmoid() if self.logistic else score

    def gradients(self, xi: Float[Tensor, "n k d"], w: Float[Tensor, "n d"], b: Float[Tensor, " n"]) -> Tensor:
        """The gradient of g by the noise, (n, k, d)."""
        if not self.logistic:
            return w[:, None].expand_as(xi)
        p = self.values(xi, w, b)
        return (p * (1 - p))[..., None] * w[:, None]

    def errors(self, sample: LocalSample, w: Tensor, b: Tensor) -> Float[Tensor, "n k"]:
        """Squared error of g, or of its gradient where the sample holds gradients."""
        if sample.gradient:
            return (sample.observed - self.gradients(sample.xi, w, b)).square().sum(2)
        return (sample.observed - self.values(sample.xi, w, b)).square()


class _Coefficients(nn.Module):
    def __init__(self, n: int, d: int, like: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(like.new_zeros(n, d))
        self.b = nn.Parameter(like.new_zeros(n))


def descend(sample: LocalSample, surrogate: Surrogate, plan: Plan, *, seed: int) -> Coefficients:
    """The same losses by stochastic gradients over the points; each input has coefficients of its own."""
    n, k, d = sample.xi.shape
    points = sample.xi.transpose(0, 1).contiguous().cpu()
    fields = {"f": sample.observed.transpose(0, 1).contiguous().cpu(), "weight": k * sample.weight.T.contiguous().cpu()}
    bounds = (float(points.min()), float(points.max()))
    data = Data(points, torch.zeros(k, dtype=torch.int64), ("point", "none"), bounds, "noise", fields=fields)

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        w, b = coefficients(model)
        part = replace(
            sample,
            xi=batch.x.transpose(0, 1),
            weight=batch.fields["weight"].T,
            observed=batch.fields["f"].transpose(0, 1),
        )
        return (part.weight * surrogate.errors(part, w, b)).mean(1).sum()

    def coefficients(model: nn.Module) -> Coefficients:
        w, b = model.parameters()
        return w, b if surrogate.intercept else torch.zeros_like(b)

    with torch.enable_grad():
        fitted = fit(_Coefficients(n, d, sample.xi), data, objective, plan, seed=seed)
    w, b = coefficients(fitted)
    return w.detach(), b.detach()
