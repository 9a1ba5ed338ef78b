"""Products of two perturbed tensors and softmax: planes sound on random points, exact at points, never looser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.certify.bounds import LpBall
from assay.certify.bounds.module import BoundedModule
from assay.certify.bounds.products import relax_product
from assay.certify.bounds.softmax import interval_softmax, relax_softmax
from assay.runtime.errors import InputError

DOUBLE = torch.float64


def box(g: torch.Generator, *shape: int, scale: float, width: float) -> tuple[Tensor, Tensor]:
    middle = torch.randn(*shape, generator=g, dtype=DOUBLE) * scale
    radius = torch.rand(*shape, generator=g, dtype=DOUBLE) * width
    radius.view(-1)[::5] = 0.0
    return middle - radius, middle + radius


def inside(g: torch.Generator, l: Tensor, u: Tensor, points: int) -> Tensor:  # noqa: E741
    """Random points and corners, (points, *shape)."""
    t = torch.rand(points, *l.shape, generator=g, dtype=DOUBLE)
    t[points // 2 :] = t[points // 2 :].round()
    return l + (u - l) * t


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), plane=st.floats(0, 1), width=st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
def test_planes_of_products_hold_and_agree_at_the_centre(seed: int, plane: float, width: float) -> None:
    g = torch.Generator().manual_seed(seed)
    (lx, ux), (ly, uy) = (box(g, 40, scale=3.0, width=width) for _ in range(2))
    x, y = inside(g, lx, ux, 200), inside(g, ly, uy, 200)
    p = relax_product(lx, ux, ly, uy, plane)
    tolerance = 1e-12 * (1 + width + 10) ** 2
    assert (p.lower_x * x + p.slope_y * y + p.lower <= x * y + tolerance).all()
    assert (p.upper_x * x + p.slope_y * y + p.upper >= x * y - tolerance).all()
    mx, my = (lx + ux) / 2, (ly + uy) / 2
    spread = (ux - lx) * (uy - ly) / 4  # McCormick's gap on either side of the centre
    assert ((p.lower_x * mx + p.slope_y * my + p.lower) - (mx * my - spread)).abs().max() <= tolerance
    assert ((p.upper_x * mx + p.slope_y * my + p.upper) - (mx * my + spread)).abs().max() <= tolerance


def test_plane_is_checked() -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        relax_product(*torch.zeros(4, 1), plane=1.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [0.0, 1e-6, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
def test_softmax_is_enclosed_and_no_looser_than_its_range(dtype: torch.dtype, width: float, scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    l, u = (t.to(dtype) for t in box(g, 60, 5, scale=scale, width=width))  # noqa: E741
    x = inside(g, l.double(), u.double(), 300)
    y, tolerance = x.softmax(-1), 1e-11 if dtype == DOUBLE else 1e-6 * (1 + scale / 1000)
    low, high = (t.double() for t in interval_softmax(l, u))
    assert (low <= y + tolerance).all()
    assert (high >= y - tolerance).all()
    p = relax_softmax(l, u)
    parts = [(s.double(), b.double()) for s, b in ((p.lower_slope, p.lower), (p.upper_slope, p.upper))]
    below, above = ((s @ x[..., None])[..., 0] + b for s, b in parts)
    rough = tolerance * (1 + scale)
    assert (below <= y + rough).all()
    assert (above >= y - rough).all()
    middle = (l + u).double() / 2
    below, above = ((s @ middle[..., None])[..., 0] + b for s, b in parts)
    assert (below >= low - 2 * rough).all()
    assert (above <= high + 2 * rough).all()
    if width == 0:
        assert (above - below).max() <= 4 * rough


def test_range_of_softmax_is_reached() -> None:
    g = torch.Generator().manual_seed(1)
    l, u = box(g, 30, 4, scale=1.0, width=1.0)  # noqa: E741
    low, high = interval_softmax(l, u)
    for j in range(4):
        corner = u.clone()
        corner[:, j] = l[:, j]
        assert torch.allclose(corner.softmax(-1)[:, j], low[:, j])
        corner = l.clone()
        corner[:, j] = u[:, j]
        assert torch.allclose(corner.softmax(-1)[:, j], high[:, j])


class Formula(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f, self.layer = f, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x.flatten(1))
        return self.f(h).flatten(1)


FORMULAS = {
    "product": lambda h: h * h.flip(1),
    "square by itself": lambda h: h * h,
    "broadcast product": lambda h: h[:, :1] * h,
    "matrices": lambda h: h.view(-1, 2, 3) @ h.view(-1, 3, 2),
    "bmm": lambda h: torch.bmm(h.view(-1, 2, 3), h.view(-1, 3, 2)),
    "constant on the left": lambda h: torch.arange(6.0).view(3, 2).to(h) @ h.view(-1, 2, 3),
    "constant on the right": lambda h: h.view(-1, 2, 3) @ torch.arange(6.0).view(3, 2).to(h),
    "ratio": lambda h: h / (1.5 + h.flip(1).sigmoid()),
    "ratio by an exponential": lambda h: h.sin() / h.exp().sum(1, keepdim=True),
    "softmax": lambda h: (4 * h).softmax(1),
    "softmax of another axis": lambda h: (4 * h).view(-1, 2, 3).softmax(1),
    "powers": lambda h: h**3 + h.pow(2) + (h.pow(2) + 1) ** 0.5 + (h.abs() + 1).rsqrt(),
    "logs": lambda h: (1 + h.exp()).log() + 1 / (2 + h.tanh()) + (h.relu() + 1).sqrt(),
    "clamps": lambda h: h.clamp(max=0.3) + h.clamp(min=-0.2) + nn.functional.relu6(6 * h) + nn.functional.hardtanh(h),
    "activations": lambda h: sum(
        f(3 * h)
        for f in (
            torch.sigmoid, torch.erf, torch.cos, nn.functional.silu, nn.functional.elu, nn.functional.selu,
            nn.functional.softplus, nn.functional.leaky_relu, nn.functional.gelu,
            lambda x: nn.functional.gelu(x, approximate="tanh"),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"plane": 0.2, "softmax": "decomposed"}], ids=["default", "options"])
@pytest.mark.parametrize("name", FORMULAS)
def test_rules_are_sound_in_the_engine(name: str, options: dict) -> None:
    torch.manual_seed(0)
    model, x, eps = Formula(FORMULAS[name]).double(), torch.randn(3, 6, dtype=DOUBLE), 0.1
    module, widths = BoundedModule(model, x, options), {}
    points = [
        x + eps * (torch.rand(500, *x.shape, dtype=DOUBLE) * 2 - 1),
        x + eps * torch.randn(500, *x.shape, dtype=DOUBLE).sign(),
    ]
    with torch.no_grad():
        z = torch.stack([model(p) for p in torch.cat(points)])
        for method in ("IBP", "CROWN-IBP", "CROWN", "forward", "forward+backward"):
            lower, upper = module.compute_bounds(x, LpBall(eps=eps), method=method)
            assert (z >= lower - 1e-9).all()
            assert (z <= upper + 1e-9).all()
            widths[method] = (upper - lower).mean()
        exact = module.compute_bounds(x, LpBall(eps=0.0))
    assert (exact[1] - exact[0]).max() < 1e-6
    assert options or widths["CROWN"] <= widths["IBP"] * 1.1


def test_a_divisor_that_may_be_zero_is_refused_with_its_place() -> None:
    torch.manual_seed(0)
    model, x = Formula(lambda h: h / h.flip(1)), torch.randn(3, 6)
    with pytest.raises(InputError, match="division by values that may be zero at 'div'"):
        BoundedModule(model, x).compute_bounds(x, LpBall(eps=1.0))
