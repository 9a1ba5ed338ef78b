"""Colors as relighting needs them: l-alpha-beta, saturation and value, and CIE lightness. RGB in [0, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
OPPONENT = ((3**-0.5,) * 3, (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)  # D65
EPS = 1e-6


def _mix(matrix: tuple[tuple[float, ...], ...], x: Tensor, *, inverse: bool = False) -> Tensor:
    m = torch.tensor(matrix, dtype=torch.float64)
    m = torch.linalg.inv(m) if inverse else m
    return torch.einsum("dc,nchw->ndhw", m.to(x), x)


def to_lalphabeta(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """l, alpha, beta of Ruderman in natural logarithms, as Reinhard et al. (2001, "Color transfer between images",
    eq. 4 to 6) use them. Colors are clipped to [1e-6, 1 - 1e-6]."""
    return _mix(OPPONENT, _mix(LMS, x.clamp(EPS, 1 - EPS)).log())


def from_lalphabeta(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The inverse of ``to_lalphabeta``, unclipped, by exact inverse matrices."""
    return _mix(LMS, _mix(OPPONENT, x, inverse=True).exp(), inverse=True)


def saturation_value(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2 h w"]:
    """S and V of HSV, in [0, 1]; S of black is 0."""
    high, low = x.amax(1), x.amin(1)
    return torch.stack(((high - low) / high.clamp_min(EPS), high), 1)


def with_saturation_value(x: Float[Tensor, "n 3 h w"], sv: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n 3 h w"]:
    """``x`` with other S and V, its hue kept: a channel is V (1 - S k), where k depends on the hue alone."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    k = (high - x) / (high - low).clamp_min(EPS)
    return sv[:, 1:] * (1 - sv[:, :1] * k)


def _cube_root(t: Tensor) -> Tensor:
    return torch.where(t > 0.008856, t.clamp_min(EPS) ** (1 / 3), 7.787 * t + 4 / 29)


def _cube(f: Tensor) -> Tensor:
    return torch.where(f > 0.2068966, f**3, (f - 4 / 29) / 7.787)


def _responses(x: Tensor) -> Tensor:
    """f(X / Xn), f(Y / Yn), f(Z / Zn) of sRGB."""
    linear = torch.where(x > 0.04045, ((x.clamp_min(EPS) + 0.055) / 1.055) ** 2.4, x / 12.92)
    return _cube_root(_mix(XYZ, linear) / torch.tensor(WHITE).to(x)[:, None, None])


def lightness(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """L* / 100 of CIE Lab (D65) of sRGB, in [0, 1]."""
    return (116 * _responses(x)[:, 1:2] - 16) / 100


def with_lightness(x: Float[Tensor, "n 3 h w"], light: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """``x`` with another L* / 100, a* and b* kept: they are differences of the responses, so all move alike."""
    f = _responses(x)
    f = f + ((100 * light + 16) / 116 - f[:, 1:2])
    linear = _mix(XYZ, _cube(f) * torch.tensor(WHITE).to(x)[:, None, None], inverse=True)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(EPS) ** (1 / 2.4) - 0.055, 12.92 * linear)
