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
from assay.certify.bounds.softmax import (
    interval_log_softmax,
    interval_softmax,
    relax_log_softmax,
    relax_softmax,
)
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
    "log softmax": lambda h: (4 * h).log_softmax(1),
    "log softmax of another axis": lambda h: (4 * h).view(-1, 2, 3).log_softmax(1),
    "logsumexp": lambda h: (4 * h).view(-1, 2, 3).logsumexp(2),
    "constant over": lambda h: torch.arange(1.0, 7.0).to(h) / (h.exp() + 0.5) + 2 / (h.cos() - 3),
    "larger and smaller": lambda h: torch.maximum(h, h.flip(1)) + torch.minimum(2 * h, h[:, :1]),
    "larger and smaller than constants": lambda h: (
        torch.maximum(h, torch.linspace(-1, 1, 6).to(h)) - torch.minimum(torch.linspace(1, -1, 6).to(h), 2 * h)
    ),
    "extremes along an axis": lambda h: torch.cat(
        (h.amax(1, keepdim=True), h.view(-1, 2, 3).amin(2), h.max(1).values[:, None], h.view(-1, 3, 2).min(1)[0]), 1
    ),
    "clamp between tensors": lambda h: h.clamp(torch.linspace(-1, 0, 6).to(h), torch.linspace(0, 1, 6).to(h)),
    "norm": lambda h: nn.functional.normalize(h, dim=1),
    "prelu": lambda h: nn.functional.prelu(h, torch.linspace(-0.5, 1.5, 6).to(h)),
    "rms norm": lambda h: nn.functional.rms_norm(h, (6,), torch.linspace(-1, 1, 6).to(h)),
    "group norm": lambda h: nn.functional.group_norm(h, 2, torch.linspace(-1, 1, 6).to(h), torch.ones(6).to(h), 0.1),
    "instance norm": lambda h: nn.functional.instance_norm(h.view(-1, 2, 3), eps=0.1),
    "a step away": lambda h: (
        nn.functional.hardsigmoid(3 * h) + (1 + h.square()).log1p() + h.expm1() + torch.exp2(h)
        + nn.functional.celu(h, 0.7) + nn.functional.glu(torch.cat((h, 2 * h), 1), 1)
    ),
    "further activations": lambda h: sum(
        f(3 * h) for f in (nn.functional.mish, nn.functional.hardswish, torch.atan, nn.functional.logsigmoid)
    ),
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
        z = model(torch.cat(points).flatten(0, 1)).unflatten(0, (1000, 3))
        for method in ("IBP", "CROWN-IBP", "CROWN", "forward", "forward+backward"):
            lower, upper = module.compute_bounds(x, LpBall(eps=eps), method=method)
            assert (z >= lower - 1e-9).all()
            assert (z <= upper + 1e-9).all()
            widths[method] = (upper - lower).mean()
        exact = module.compute_bounds(x, LpBall(eps=0.0))
    assert (exact[1] - exact[0]).max() < 1e-6
    assert options or widths["CROWN"] <= widths["IBP"]


def test_a_divisor_that_may_be_zero_is_refused_with_its_place() -> None:
    torch.manual_seed(0)
    model, x = Formula(lambda h: h / h.flip(1)), torch.randn(3, 6)
    with pytest.raises(InputError, match="division by values that may be zero at 'div'"):
        BoundedModule(model, x).compute_bounds(x, LpBall(eps=1.0))


def test_log_softmax_is_enclosed_reached_and_closer_than_its_range() -> None:
    g = torch.Generator().manual_seed(0)
    for width in (0.0, 1e-6, 0.1, 1.0, 20.0):
        l, u = box(g, 60, 5, scale=10.0, width=width)  # noqa: E741
        y = inside(g, l, u, 300).log_softmax(-1)
        low, high = interval_log_softmax(l, u)
        assert (low <= y + 1e-12).all()
        assert (high >= y - 1e-12).all()
        for j in range(5):
            worst = u.clone()
            worst[:, j] = l[:, j]
            assert torch.allclose(worst.log_softmax(-1)[:, j], low[:, j])
        p, x = relax_log_softmax(l, u), inside(g, l, u, 300)
        below, above = ((s @ x[..., None])[..., 0] + b for s, b in ((p.lower_slope, p.lower), (p.upper_slope, p.upper)))
        assert (below <= x.log_softmax(-1) + 1e-12).all()
        assert (above >= x.log_softmax(-1) - 1e-12).all()
        middle = (l + u) / 2
        below, above = (
            (s @ middle[..., None])[..., 0] + b for s, b in ((p.lower_slope, p.lower), (p.upper_slope, p.upper))
        )
        assert (below >= low - 1e-8).all()
        assert (above <= high + 1e-8).all()
        assert (above - middle.log_softmax(-1)).abs().max() <= 1e-8 or width > 1  # the tangent plane
    with pytest.raises(InputError, match="expected one"):
        BoundedModule(Formula(lambda h: h.logsumexp((0, 1), keepdim=True)), torch.randn(3, 6))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_are_exact_where_the_winner_is_known_and_by_hand_elsewhere(sign: float) -> None:
    pick = torch.maximum if sign > 0 else torch.minimum

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return pick(x[:, :2], x[:, 2:])

    x = torch.tensor([[1.0, 0.0, 0.0, 0.1]], dtype=DOUBLE)
    run = BoundedModule(Net(), x)
    # x_0 in [0.8, 1.2] over x_2 in [-0.2, 0.2]; max(x_1, x_3) with d = x_1 - x_3 in [-0.5, 0.3] lies under
    # x_3 + (3/8) (d + 1/2) = 3/8 x_1 + 5/8 x_3 + 3/16, at most 0.075 + 0.1875 + 0.1875, and over x_3
    lower, upper = run.compute_bounds(x * sign, LpBall(eps=0.2), nested=False)
    ends = torch.stack((lower[0], upper[0])) * sign
    expected = torch.tensor([[0.8, -0.1], [1.2, 0.45]], dtype=DOUBLE)
    assert torch.allclose(ends.sort(0).values, expected, atol=1e-9)
    boxes = torch.stack([b[0] for b in run.compute_bounds(x * sign, LpBall(eps=0.2), method="IBP")]) * sign
    assert torch.allclose(boxes.sort(0).values, torch.tensor([[0.8, -0.1], [1.2, 0.3]], dtype=DOUBLE))
