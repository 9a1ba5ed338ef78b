"""Wide two-layer ReLU networks near their start: the network, its linearisation, and how far its data are apart."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.runtime.spec import rebuildable


@rebuildable
class TwoLayerReLU(nn.Module):
    """f_U(x) = sum_r a_r relu(<U_r, x> + b_r), of which only U (m, d) is trained (Li et al., 2022, arXiv:2208.03635).

    At the start U_r(0) and b_r have independent entries N(0, 1/m), and a_r = +-m^(-1/3) with equal odds: the scaling
    of the analysis of centralised adversarial training that the paper builds on (Zhang et al., 2020). Points (n, d)
    give outputs (n,), float64. InputError unless d and m are at least 1.
    """

    a: Tensor
    b: Tensor
    start: Tensor

    def __init__(self, d: int, m: int, seed: int = 0) -> None:
        super().__init__()
        if d < 1 or m < 1:
            raise InputError(f"TwoLayerReLU: d={d}, m={m}; expected at least 1")
        g = torch_rng(seed, "over-param")
        u = torch.randn(m, d, generator=g, dtype=torch.float64) / m**0.5
        signs = torch.randint(2, (m,), generator=g).double() * 2 - 1
        self.register_buffer("b", torch.randn(m, generator=g, dtype=torch.float64) / m**0.5)
        self.register_buffer("a", signs * m ** (-1 / 3))
        self.register_buffer("start", u.clone())
        self.u = nn.Parameter(u)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return torch.relu(x @ self.u.T + self.b) @ self.a

    def _active(self, u: Tensor, x: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        return (x @ u.T + self.b >= 0).to(x)

    def pseudo(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """g_U(x) = sum_r a_r <U_r - U_r(0), x> 1{<U_r(0), x> + b_r >= 0}: linear in U - U(0)."""
        return ((x @ (self.u - self.start).T) * self._active(self.start, x)) @ self.a

    @torch.no_grad()
    def coupling_gap(self, x: Float[Tensor, "n d"]) -> float:
        """The largest |f_U - g_U| over the points."""
        return float((self(x) - self.pseudo(x)).abs().max())

    @torch.no_grad()
    def gradient_gap(self, x: Float[Tensor, "n d"]) -> float:
        """The largest sum_r |grad_r f_U - grad_r g_U| over the points: what units that switched contribute."""
        switched = (self._active(self.u, x) - self._active(self.start, x)).abs()
        return float((switched @ self.a.abs() * x.norm(dim=1)).max())

    @torch.no_grad()
    def displacement(self) -> float:
        """max_r |U_r - U_r(0)|_2, the norm in which the analysis stays near the start."""
        return float((self.u - self.start).norm(dim=1).max())


def check_unit(where: str, x: Float[Tensor, "n d"]) -> None:
    """InputError unless ``x`` holds two or more points of norm 1."""
    if x.dim() != 2 or len(x) < 2:
        raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected (n, d) with n >= 2")
    off = float((x.norm(dim=1) - 1).abs().max())
    if not off <= 1e-5:
        raise InputError(f"{where}: norms are up to {off:.3g} away from 1; expected points on the unit sphere")


def separability(x: Float[Tensor, "n d"]) -> float:
    """delta, the smallest distance between two of the points (n, d) on the unit sphere; InputError off it."""
    check_unit("separability", x)
    return float(torch.pdist(x).min())


def margin(x: Float[Tensor, "n d"], rho: float) -> float:
    """gamma = delta (delta - 2 rho): by how much balls of radius ``rho`` around the points are apart.

    Along x_i - x_j the balls are |x_i - x_j| (|x_i - x_j| - 2 rho) apart. At 0 or below they meet: a warning.
    InputError as separability.
    """
    delta = separability(x)
    if delta <= 2 * rho:
        warnings.warn(f"points {delta:.3g} apart, radius {rho:.3g}: the balls meet", RuntimeWarning, stacklevel=2)
    return delta * (delta - 2 * rho)


def separable_sphere(n: int, d: int, delta: float, *, seed: int) -> Float[Tensor, "n d"]:
    """Random points (n, d) on the unit sphere, last coordinate 1/2, no two nearer than ``delta``; float64.

    Points are drawn one by one and kept where they are far enough from all before. InputError where 10,000 draws leave
    fewer than ``n``.
    """
    if n < 1 or d < 2 or not delta >= 0:
        raise InputError(f"separable_sphere: n={n}, d={d}, delta={delta}; expected n >= 1, d >= 2, delta >= 0")
    with seeded(seed, "sphere"):
        free = torch.nn.functional.normalize(torch.randn(10_000, d - 1, dtype=torch.float64), dim=1)
    drawn = torch.cat((free * 0.75**0.5, torch.full((len(free), 1), 0.5, dtype=torch.float64)), 1)
    kept = drawn[:1]
    for point in drawn[1:]:
        if len(kept) == n:
            return kept
        if float((kept - point).norm(dim=1).min()) >= delta:
            kept = torch.cat((kept, point[None]))
    raise InputError(f"separable_sphere: {len(kept)} of {n} points at distance {delta}; expected room for all")
