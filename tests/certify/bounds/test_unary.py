"""Lines around curves: sound on dense grids, exact at points, and of least area."""

# ruff: noqa: E741, E731
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.certify.bounds import unary
from assay.certify.bounds.relaxation import Lines
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class Case:
    relax: Callable[[Tensor, Tensor], Lines]
    interval: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    f: Callable[[Tensor], Tensor]
    low: float = -1e6
    high: float = 1e6
    best: bool = True  # the lines are those of least area


def case(name: str, f: Callable[[Tensor], Tensor], low: float = -1e6, high: float = 1e6, best: bool = True, **options):
    relax, interval = getattr(unary, f"relax_{name}"), getattr(unary, f"interval_{name}")
    return Case(partial(relax, **options), partial(interval, **options), f, low, high, best)


CASES = {
    "sigmoid": case("sigmoid", torch.sigmoid),
    "tanh": case("tanh", torch.tanh),
    "erf": case("erf", torch.erf),
    "gelu": case("gelu", F.gelu),
    "gelu-tanh": case("gelu", partial(F.gelu, approximate="tanh"), approximate="tanh"),
    "silu": case("silu", F.silu),
    "mish": case("mish", F.mish),
    "hardswish": case("hardswish", F.hardswish, best=False),
    "atan": case("atan", torch.atan),
    "log-sigmoid": case("log_sigmoid", F.logsigmoid),
    "exp": case("exp", torch.exp, -1e6, 80.0),
    "log": case("log", torch.log, 1e-6, 1e6),
    "sqrt": case("sqrt", torch.sqrt, 0.0, 1e6),
    "rsqrt": case("rsqrt", torch.rsqrt, 1e-6, 1e6),
    "reciprocal": case("reciprocal", torch.reciprocal, 1e-6, 1e6),
    "reciprocal-negative": case("reciprocal", torch.reciprocal, -1e6, -1e-6),
    "square": case("square", torch.square),
    "cube": case("power", lambda x: x**3, -1e4, 1e4, exponent=3),
    "fourth": case("power", lambda x: x**4, -1e3, 1e3, exponent=4),
    "abs": case("abs", torch.abs),
    "leaky-relu": case("leaky_relu", partial(F.leaky_relu, negative_slope=0.1), negative_slope=0.1),
    "steep-leaky-relu": case("leaky_relu", partial(F.leaky_relu, negative_slope=1.7), negative_slope=1.7),
    "elu": case("elu", partial(F.elu, alpha=0.8), alpha=0.8),
    "selu": case("elu", F.selu, best=False, alpha=1.6732632423543772, scale=1.0507009873554805),
    "softplus": case("softplus", partial(F.softplus, beta=2.0), beta=2.0),
    "early-softplus": case("softplus", partial(F.softplus, threshold=0.5), best=False, threshold=0.5),
    "linear-softplus": case("softplus", partial(F.softplus, threshold=-3.0), best=False, threshold=-3.0),
    "relu": case("clamp", torch.relu, minimum=0.0),
    "relu6": case("clamp", F.relu6, minimum=0.0, maximum=6.0),
    "minimum": case("clamp", lambda x: x.clamp(max=0.3), maximum=0.3),
    "step": case("step", lambda x: (x > 0).to(x), best=False),
    "sin": case("sin", torch.sin, -30.0, 30.0, best=False),
    "cos": case("cos", torch.cos, -30.0, 30.0, best=False),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def intervals(case: Case, n: int = 150, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Points, widths of 1e-6, ordinary ones and huge ones; ends around 0 and at the ends of the domain."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    scale = torch.tensor([1e-6, 1e-2, 1.0, 5.0, 40.0, 1e3, 1e6], dtype=torch.float64)
    l = ((draw(7, n) * 2 - 1) * scale[:, None]).flatten()
    width = draw(7 * n) * scale[torch.randint(7, (7 * n,), generator=g)]
    width[::7], width[1::7] = 0.0, 1e-6
    u = (l + width).clamp(case.low, case.high).to(dtype)
    return l.clamp(case.low, case.high).to(dtype), u


def grid(l: Tensor, u: Tensor, points: int = 257) -> Tensor:
    """(points, n): even steps, and steps that crowd at both ends."""
    t = torch.linspace(0, 1, points, dtype=l.dtype)[:, None]
    near = torch.logspace(-12, -1, 40, dtype=l.dtype)[:, None]
    return torch.cat([l + (u - l) * s for s in (t, near, 1 - near)]).maximum(l).minimum(u)


def gaps(case: Case, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By how much the lines leave the curve's sides (> 0 is unsound), below and above; and the magnitudes involved."""
    lines, h = case.relax(l, u), grid(l, u).double()
    k, b, kk, bb = (
        t.double() for t in (lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept)
    )
    size = torch.maximum(l.abs(), u.abs()).double()
    value = case.f(h)
    rough = 1 + k.abs() * size + b.abs() + kk.abs() * size + bb.abs()
    return ((k * h + b) - value).amax(0), (value - (kk * h + bb)).amax(0), rough


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lines_are_sound_and_exact_at_points(case: Case, dtype: torch.dtype) -> None:
    l, u = intervals(case, dtype=dtype)
    below, above, rough = gaps(case, l, u)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert (below <= tolerance * rough).all()
    assert (above <= tolerance * rough).all()
    point = l == u
    assert (-below[point] <= 1e-5 * rough[point]).all()
    assert (-above[point] <= 1e-5 * rough[point]).all()


@each
def test_intervals_hold_the_curve_and_are_reached(case: Case) -> None:
    l, u = intervals(case)
    lower, upper = case.interval(l, u)
    value = case.f(grid(l, u, 4097))
    low, high = value.amin(0), value.amax(0)
    assert (lower <= low + 1e-12 * (1 + low.abs())).all()
    assert (upper >= high - 1e-12 * (1 + high.abs())).all()
    narrow = (u - l) <= 0.1
    assert ((low - lower)[narrow] <= 1e-4 * (1 + low[narrow].abs())).all()
    assert ((upper - high)[narrow] <= 1e-4 * (1 + high[narrow].abs())).all()


def area(case: Case, l: Tensor, u: Tensor) -> Tensor:
    """The area between the two lines over [l, u]."""
    lines = case.relax(l, u)
    middle = (l + u) / 2
    gap = (lines.upper_slope - lines.lower_slope) * middle + lines.upper_intercept - lines.lower_intercept
    return gap * (u - l)


@each
@settings(max_examples=25, deadline=None)
@given(a=st.floats(-12, 12), width=st.floats(0, 25), shrink=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_area_is_never_above_the_interval_and_shrinks_with_it(case, a, width, shrink) -> None:
    l = torch.tensor([a], dtype=torch.float64).clamp(case.low, case.high)
    u = (l + width).clamp(case.low, case.high)
    lower, upper = case.interval(l, u)
    size = 1 + (upper - lower).abs() * (u - l) + (l.abs() + u.abs() + upper.abs() + lower.abs()) ** 2
    assert (area(case, l, u) <= (upper - lower) * (u - l) + 1e-9 * size).all()
    if case.best:
        s, t = sorted(shrink)
        inner = area(case, l + (u - l) * s, l + (u - l) * t)
        assert (inner <= area(case, l, u) + 1e-9 * size).all()


def hull(h: Tensor, v: Tensor) -> Tensor:
    """The value at the middle of the lower convex hull of points (h, v) (points, n), h even: over all chords."""
    middle = len(h) // 2
    left, right = slice(0, middle + 1), slice(middle, None)
    a, b = h[left][:, None], h[right][None]
    t = torch.where(b > a, (h[middle] - a) / torch.where(b > a, b - a, 1.0), 0.0)
    return (v[left][:, None] * (1 - t) + v[right][None] * t).flatten(0, 1).amin(0)


@pytest.mark.parametrize("name", [k for k, c in CASES.items() if c.best])
def test_lines_support_the_hull_at_the_midpoint(name: str) -> None:
    case = CASES[name]
    g = torch.Generator().manual_seed(1)
    l = (torch.rand(300, generator=g, dtype=torch.float64) * 16 - 8).clamp(case.low, case.high)
    u = (l + torch.rand(300, generator=g, dtype=torch.float64) * 10).clamp(case.low, case.high)
    l, u = l[u - l > 1e-3], u[u - l > 1e-3]
    h = l + (u - l) * torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    v, middle, lines = case.f(h), (l + u) / 2, case.relax(l, u)
    coarse = (v[1:] - v[:-1]).abs().amax(0) / 2 + 1e-9 * (1 + v.abs().amax(0))  # kinks between points of the grid
    assert (hull(h, v) - (lines.lower_slope * middle + lines.lower_intercept) <= coarse).all()
    assert ((lines.upper_slope * middle + lines.upper_intercept) + hull(h, -v) <= coarse).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "cube", "exp", "softplus", "relu6", "sqrt"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    case = CASES[name]
    g = torch.Generator().manual_seed(2)
    l = (torch.rand(200, generator=g, dtype=torch.float64) * 6 - 4).clamp(case.low + 0.05, case.high)
    u = l + 0.1 + torch.rand(200, generator=g, dtype=torch.float64) * 6
    parts = lambda a, b: torch.stack([*vars(case.relax(a, b)).values()])
    ends = (l.requires_grad_(), u.requires_grad_())
    weight = torch.rand(4, 200, generator=g, dtype=torch.float64)
    found = torch.autograd.grad((weight * parts(*ends)).sum(), ends)
    step = 1e-5
    with torch.no_grad():
        for k, (dl, du) in enumerate(((step, 0.0), (0.0, step))):
            rise = parts(l + dl, u + du) - parts(l - dl, u - du)
            expected = (weight * rise).sum(0) / (2 * step)
            assert ((found[k] - expected).abs() <= 1e-4 * (1 + expected.abs())).double().mean() > 0.98  # but for kinks


def test_domains_are_checked() -> None:
    l, u = torch.tensor([-1.0]), torch.tensor([1.0])
    for relax in (unary.relax_log, unary.relax_sqrt, unary.relax_rsqrt, unary.relax_reciprocal):
        with pytest.raises(InputError, match="expected bounds"):
            relax(l, u)
    for refuse in (lambda: unary.power(1.5), lambda: unary.leaky_relu(-0.1), lambda: unary.elu(-1.0)):
        with pytest.raises(InputError):
            refuse()
