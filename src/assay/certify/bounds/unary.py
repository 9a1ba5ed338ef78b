"""Elementwise operators: ``relax_<name>(l, u)`` gives two lines, ``interval_<name>(l, u)`` the range, for l <= h <= u.

All are elementwise over tensors of one shape, differentiable in l and u almost everywhere, and exact where l == u, up
to the outward slack.
"""

# ruff: noqa: E741
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.certify.bounds.curves import WHOLE, Curve, Piece, outward
from assay.certify.bounds.relaxation import Lines
from assay.runtime.errors import InputError

LEFT, RIGHT = (-math.inf, 0.0), (0.0, math.inf)
GELU_BEND, TANH_GELU_BEND, SILU_BEND = math.sqrt(2), 1.4185040087908283, 2.3993572805154675  # f'' = 0 there
MISH_BENDS, MISH_VALLEY = (-2.2563763963960793, 1.4905711794854285), -1.1924312145154952  # f'' = 0, f' = 0 there
GELU_VALLEY, TANH_GELU_VALLEY, SILU_VALLEY = -0.7517915246935645, -0.752461422071016, -1.278464542761074  # f' = 0


def _phi(x: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.erfc(-x / math.sqrt(2)) / 2 + x * _phi(x)


def _tanh_gelu_slope(x: Tensor) -> Tensor:
    x = x.clamp(-30, 30)  # the cube's slope times a saturated tanh's would be inf * 0 far out
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    gate, rise = torch.sigmoid(2 * inner), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())
    return gate + x * 2 * gate * torch.sigmoid(-2 * inner) * rise


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate + x * gate * torch.sigmoid(-x)


def _mish_slope(x: Tensor) -> Tensor:
    gate = torch.tanh(F.softplus(x))
    return gate + x * torch.sigmoid(x) * (1 - gate.square())


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 3, (2 * x + 3) / 6, (x > 3).to(x))  # at the kinks that of the piece between them


def _outside(bend: float) -> tuple[Piece, Piece]:
    """Where GELU and SiLU are concave: beyond their two bends."""
    return (-math.inf, -bend), (bend, math.inf)


SIGMOID = Curve(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), LEFT, RIGHT, reach=800)
TANH = Curve(torch.tanh, lambda x: 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x), LEFT, RIGHT, reach=400)
ERF = Curve(torch.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x.square()), LEFT, RIGHT, reach=28)
GELU = Curve(F.gelu, _gelu_slope, (-GELU_BEND, GELU_BEND), _outside(GELU_BEND), reach=40, valley=GELU_VALLEY)
TANH_GELU = Curve(
    lambda x: F.gelu(x, approximate="tanh"),
    _tanh_gelu_slope,
    (-TANH_GELU_BEND, TANH_GELU_BEND),
    _outside(TANH_GELU_BEND),
    reach=30,
    valley=TANH_GELU_VALLEY,
)
SILU = Curve(F.silu, _silu_slope, (-SILU_BEND, SILU_BEND), _outside(SILU_BEND), reach=800, valley=SILU_VALLEY)
MISH = Curve(
    F.mish, _mish_slope, MISH_BENDS, ((-math.inf, MISH_BENDS[0]), (MISH_BENDS[1], math.inf)), 800, valley=MISH_VALLEY
)
HARDSWISH = Curve(F.hardswish, _hardswish_slope, (-3.0, 3.0), ((-math.inf, -3.0), (3.0, math.inf)), valley=-1.5)
ATAN = Curve(torch.atan, lambda x: 1 / (1 + x.square()), LEFT, RIGHT)
LOG_SIGMOID = Curve(F.logsigmoid, lambda x: torch.sigmoid(-x), concave=WHOLE)
EXP = Curve(torch.exp, torch.exp, WHOLE)
SQUARE = Curve(torch.square, lambda x: 2 * x, WHOLE, valley=0.0, scale=0.0)
ABS = Curve(torch.abs, torch.sign, WHOLE, valley=0.0)
LOG = Curve(torch.log, torch.reciprocal, concave=WHOLE, scale=0.0)
SQRT = Curve(torch.sqrt, lambda x: x.clamp(min=1e-30).rsqrt() / 2, concave=WHOLE, scale=0.0)
RSQRT = Curve(torch.rsqrt, lambda x: -(x.rsqrt() ** 3) / 2, WHOLE, scale=0.0)
INVERSE = Curve(torch.reciprocal, lambda x: -x.reciprocal().square(), WHOLE, scale=0.0)  # for x > 0

relax_sigmoid, interval_sigmoid = SIGMOID.lines, SIGMOID.interval
relax_tanh, interval_tanh = TANH.lines, TANH.interval
relax_erf, interval_erf = ERF.lines, ERF.interval
relax_silu, interval_silu = SILU.lines, SILU.interval
relax_mish, interval_mish = MISH.lines, MISH.interval
relax_hardswish, interval_hardswish = HARDSWISH.lines, HARDSWISH.interval
relax_atan, interval_atan = ATAN.lines, ATAN.interval
relax_log_sigmoid, interval_log_sigmoid = LOG_SIGMOID.lines, LOG_SIGMOID.interval
relax_exp, interval_exp = EXP.lines, EXP.interval
relax_square, interval_square = SQUARE.lines, SQUARE.interval
relax_abs, interval_abs = ABS.lines, ABS.interval


def relax_gelu(l: Tensor, u: Tensor, approximate: str = "none") -> Lines:
    """x Phi(x), or its approximation through tanh (Hendrycks and Gimpel, 2016, arXiv:1606.08415, section 2)."""
    return _gelu(approximate).lines(l, u)


def interval_gelu(l: Tensor, u: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
    """The range of GELU, whose minimum is inside."""
    return _gelu(approximate).interval(l, u)


def _gelu(approximate: str) -> Curve:
    return TANH_GELU if approximate == "tanh" else GELU


def relax_log(l: Tensor, u: Tensor) -> Lines:
    """Natural logarithm on l > 0."""
    return _on("log", LOG, l, l > 0).lines(l, u)


def interval_log(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Its range on l > 0."""
    return _on("log", LOG, l, l > 0).interval(l, u)


def relax_sqrt(l: Tensor, u: Tensor) -> Lines:
    """Square root on l >= 0."""
    return _on("sqrt", SQRT, l, l >= 0).lines(l, u)


def interval_sqrt(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Its range on l >= 0."""
    return _on("sqrt", SQRT, l, l >= 0).interval(l, u)


def relax_rsqrt(l: Tensor, u: Tensor) -> Lines:
    """1 / sqrt(x) on l > 0."""
    return _on("rsqrt", RSQRT, l, l > 0).lines(l, u)


def interval_rsqrt(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Its range on l > 0."""
    return _on("rsqrt", RSQRT, l, l > 0).interval(l, u)


def _on(name: str, curve: Curve, l: Tensor, inside: Tensor) -> Curve:
    """The curve, once its whole domain is certain."""
    if not inside.all():
        raise InputError(
            f"bounds: {name} of values that may be as low as {float(l.min()):.4g}; "
            "expected bounds within its domain: a smaller region or tighter bounds before it"
        )
    return curve


def relax_reciprocal(l: Tensor, u: Tensor) -> Lines:
    """1 / x where l > 0 or u < 0."""
    negative, low, high = _folded(l, u)
    lines = INVERSE.lines(low, high)
    return Lines(
        torch.where(negative, lines.upper_slope, lines.lower_slope),
        torch.where(negative, -lines.upper_intercept, lines.lower_intercept),
        torch.where(negative, lines.lower_slope, lines.upper_slope),
        torch.where(negative, -lines.lower_intercept, lines.upper_intercept),
    )


def interval_reciprocal(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Its range where l > 0 or u < 0."""
    negative, low, high = _folded(l, u)
    lower, upper = INVERSE.interval(low, high)
    return torch.where(negative, -upper, lower), torch.where(negative, -lower, upper)


def _folded(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which intervals are negative, and all of them on the positive side: 1 / x is odd."""
    negative = u < 0
    if not (negative | (l > 0)).all():
        raise InputError(
            "bounds: the reciprocal of values that may be zero; expected bounds that exclude zero: a smaller region "
            "or tighter bounds before it"
        )
    return negative, torch.where(negative, -u, l), torch.where(negative, -l, u)


def power(exponent: float) -> Curve:
    """x^p for a whole p >= 1 on all x."""
    if exponent != int(exponent) or exponent < 1:
        raise InputError(f"bounds: no rule for the power {exponent}; expected a whole number above 0, 1/2, -1/2 or -1")
    p = int(exponent)
    even = p % 2 == 0
    convex, concave = (WHOLE, None) if even else (RIGHT, LEFT)
    return Curve(lambda x: x**p, lambda x: p * x ** (p - 1), convex, concave, valley=0.0 if even else None, scale=0.0)


def relax_power(l: Tensor, u: Tensor, exponent: float) -> Lines:
    """x^p for a whole p >= 1, and for 1/2, -1/2 and -1 where these are defined."""
    roots = {0.5: relax_sqrt, -0.5: relax_rsqrt, -1.0: relax_reciprocal}
    return roots[exponent](l, u) if exponent in roots else power(exponent).lines(l, u)


def interval_power(l: Tensor, u: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Its range."""
    roots = {0.5: interval_sqrt, -0.5: interval_rsqrt, -1.0: interval_reciprocal}
    return roots[exponent](l, u) if exponent in roots else power(exponent).interval(l, u)


def leaky_relu(negative_slope: float = 0.01) -> Curve:
    """max(x, 0) + a min(x, 0): convex for a <= 1, else concave."""
    if negative_slope < 0:
        raise InputError(f"bounds: LeakyReLU with slope {negative_slope}; expected a slope >= 0")
    convex, concave = (WHOLE, None) if negative_slope <= 1 else (None, WHOLE)
    return Curve(
        lambda x: F.leaky_relu(x, negative_slope),
        lambda x: torch.where(x < 0, torch.full_like(x, negative_slope), torch.ones_like(x)),
        convex,
        concave,
    )


def relax_leaky_relu(l: Tensor, u: Tensor, negative_slope: float = 0.01) -> Lines:
    """Leaky ReLU with a slope >= 0."""
    return leaky_relu(negative_slope).lines(l, u)


def interval_leaky_relu(l: Tensor, u: Tensor, negative_slope: float = 0.01) -> tuple[Tensor, Tensor]:
    """Its range."""
    return leaky_relu(negative_slope).interval(l, u)


def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    """scale (x, or alpha (exp(input_scale x) - 1) for x < 0), as ELU and SELU; all three > 0."""
    if min(alpha, scale, input_scale) <= 0:
        raise InputError(f"bounds: ELU with alpha {alpha}, scales {scale} and {input_scale}; expected all above 0")
    convex, concave = (WHOLE, None) if alpha * input_scale <= 1 else (LEFT, RIGHT)

    def slope(x: Tensor) -> Tensor:
        bent = alpha * input_scale * torch.exp(input_scale * x.clamp(max=0))
        return scale * torch.where(x < 0, bent, torch.ones_like(x))

    return Curve(
        lambda x: torch.ops.aten.elu(x, alpha, scale, input_scale), slope, convex, concave, reach=800 / input_scale
    )


def relax_elu(l: Tensor, u: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Lines:
    """ELU and SELU."""
    return elu(alpha, scale, input_scale).lines(l, u)


def interval_elu(
    l: Tensor, u: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Its range."""
    return elu(alpha, scale, input_scale).interval(l, u)


def softplus(beta: float = 1.0) -> Curve:
    """log(1 + exp(beta x)) / beta, with beta > 0."""
    if beta <= 0:
        raise InputError(f"bounds: softplus with beta {beta}; expected beta > 0")
    return Curve(
        lambda x: torch.logaddexp(beta * x, torch.zeros_like(x)) / beta, lambda x: torch.sigmoid(beta * x), WHOLE
    )


def relax_softplus(l: Tensor, u: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Lines:
    """Softplus, which torch replaces by x where beta x exceeds ``threshold``: it falls there to threshold / beta."""
    lines, after = softplus(beta).lines(l, u), beta * l > threshold
    fall = torch.where(beta * u > threshold, math.log1p(math.exp(-threshold)) / beta, 0.0)
    return Lines(
        torch.where(after, 1.0, lines.lower_slope),
        torch.where(after, 0.0, lines.lower_intercept - fall),
        torch.where(after, 1.0, lines.upper_slope),
        torch.where(after, 0.0, lines.upper_intercept),
    )


def interval_softplus(l: Tensor, u: Tensor, beta: float = 1.0, threshold: float = 20.0) -> tuple[Tensor, Tensor]:
    """Its range."""
    value, edge = softplus(beta).value, torch.full_like(l, threshold / beta)
    lower, upper = (torch.where(beta * end > threshold, end, value(end)) for end in (l, u))
    falls = (beta * l <= threshold) & (beta * u > threshold)
    return torch.where(falls, lower.minimum(edge), lower), torch.where(falls, upper.maximum(value(edge)), upper)


def relax_clamp(l: Tensor, u: Tensor, minimum: float | None = None, maximum: float | None = None) -> Lines:
    """min(max(x, minimum), maximum): ReLU6, hardtanh, and the maximum or minimum with a constant.

    Below, the best line is flat at ``minimum`` where the midpoint lies under it, else it rises to the end at u; the
    upper line mirrors it.
    """
    low, high = -math.inf if minimum is None else minimum, math.inf if maximum is None else maximum
    if not low <= high:
        raise InputError(f"bounds: clamp to [{low}, {high}]; expected minimum <= maximum")
    middle, ends = (l + u) / 2, (l.clamp(low, high), u.clamp(low, high))
    lower = _ray(u, ends[1], l.clamp(min=low), ends[0], flat=middle < low)
    upper = _ray(l, ends[0], u.clamp(max=high), ends[1], flat=middle > high)
    return outward(Lines(*lower, *upper), l, u)


def _ray(end: Tensor, at_end: Tensor, knee: Tensor, at_knee: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The line through a knee and the far end, or the constant at the knee."""
    still = flat | (knee == end)
    k = torch.where(still, 0.0, (at_end - at_knee) / torch.where(still, 1.0, end - knee))
    return k, at_knee - k * knee


def interval_clamp(
    l: Tensor, u: Tensor, minimum: float | None = None, maximum: float | None = None
) -> tuple[Tensor, Tensor]:
    """Its range."""
    return l.clamp(minimum, maximum), u.clamp(minimum, maximum)


def relax_step(l: Tensor, u: Tensor) -> Lines:
    """1 where x > 0, else 0: the slope of ReLU. Where the sign is open, a line through 0 or 1 on the shorter side."""
    open_, middle = (l <= 0) & (u > 0), (l + u) / 2
    fixed = (l > 0).to(l.dtype)
    rise = torch.where(open_ & (middle > 0), 1 / torch.where(u > 0, u, 1.0), 0.0)
    climbs = open_ & (middle <= 0)
    fall = torch.where(climbs, 1 / torch.where(l < 0, -l, 1.0), 0.0)
    return Lines(rise, fixed, fall, torch.where(open_, 1.0, fixed).to(l.dtype))


def interval_step(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Its range."""
    return (l > 0).to(l.dtype), (u > 0).to(l.dtype)


def relax_sin(l: Tensor, u: Tensor) -> Lines:
    """Lines parallel to the chord, or flat ones where those lie closer at the midpoint."""
    low, high = interval_sin(l, u)
    width, middle = u - l, (l + u) / 2
    tiny = width <= 1e-6 * (1 + middle.abs())
    k = torch.where(tiny, middle.cos(), (u.sin() - l.sin()) / torch.where(tiny, 1.0, width))
    turn = torch.acos(k.clamp(-1, 1)).detach()  # sin h - k h is largest at turn + 2 pi n, smallest at -turn + 2 pi n
    above = _sloped(l, u, k, turn)
    below = -_sloped(-u, -l, k, turn)
    sloped = width < 2 * math.pi
    up, down = sloped & (k * middle + above < high), sloped & (k * middle + below > low)
    return outward(
        Lines(
            torch.where(down, k, 0), torch.where(down, below, low), torch.where(up, k, 0), torch.where(up, above, high)
        ),
        l,
        u,
    )


def _sloped(l: Tensor, u: Tensor, k: Tensor, turn: Tensor) -> Tensor:
    """The largest value of sin h - k h on an interval shorter than 2 pi."""
    peak = turn + 2 * math.pi * torch.ceil((l - turn) / (2 * math.pi)).detach()
    best = torch.maximum(l.sin() - k * l, u.sin() - k * u)
    return torch.where(peak <= u, torch.maximum(best, peak.sin() - k * peak), best)


def interval_sin(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The range: 1 where a crest pi / 2 + 2 pi n lies inside, -1 where a trough does."""
    turn, ends = 2 * math.pi, (l.sin(), u.sin())
    crest = torch.ceil((l - math.pi / 2) / turn) * turn + math.pi / 2 <= u
    trough = torch.ceil((l + math.pi / 2) / turn) * turn - math.pi / 2 <= u
    lower = torch.where(trough, -1.0, torch.minimum(*ends)).to(l.dtype)
    upper = torch.where(crest, 1.0, torch.maximum(*ends)).to(l.dtype)
    slack = 8 * torch.finfo(l.dtype).eps * torch.maximum(l.abs(), u.abs())  # a huge argument has lost its phase
    return (lower - slack).clamp(min=-1), (upper + slack).clamp(max=1)


def relax_cos(l: Tensor, u: Tensor) -> Lines:
    """sin(x + pi / 2)."""
    quarter = math.pi / 2
    lines = relax_sin(l + quarter, u + quarter)
    return Lines(
        lines.lower_slope,
        lines.lower_intercept + quarter * lines.lower_slope,
        lines.upper_slope,
        lines.upper_intercept + quarter * lines.upper_slope,
    )


def interval_cos(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Its range."""
    return interval_sin(l + math.pi / 2, u + math.pi / 2)
