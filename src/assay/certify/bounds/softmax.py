"""Softmax: its exact range over a box, planes around it, and the same through exp, sum and reciprocal.

Planes (Wei et al., 2023, arXiv:2303.01713, sections 3 and 4) come in two kinds, from 1 / sum_i exp(x_i - x_j) and from
exp(x_j - logsumexp(x)). The volume below a plane over a box is its value at the centre times the box's, so of these and
the constant bound each output takes the best one at the centre. Slopes cost a matrix (t, t) for each softmax of t
entries; the option ``softmax="decomposed"`` costs vectors instead and is looser.
"""

# ruff: noqa: E741
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.certify.bounds.interval import Interval
from assay.certify.bounds.products import Product, kept, total
from assay.certify.bounds.registry import Call, Form, Rule, negative, positive, register
from assay.certify.bounds.unary import interval_exp, interval_reciprocal, relax_exp, relax_reciprocal
from assay.runtime.errors import unknown

aten = torch.ops.aten


@dataclass(frozen=True)
class Dense:
    """lower_slope x + lower <= y <= upper_slope x + upper, slopes (..., t, t) and intercepts (..., t)."""

    lower_slope: Tensor
    lower: Tensor
    upper_slope: Tensor
    upper: Tensor


def interval_softmax(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The exact range over the box on the last axis: own entry at one end, the others at the other."""
    low, high = l.double(), u.double()
    return _log_extreme(low, high).exp().to(l.dtype), _log_extreme(high, low).exp().to(l.dtype)


def _log_extreme(own: Tensor, others: Tensor) -> Tensor:
    eye = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
    return own - torch.where(eye, own[..., :, None], others[..., None, :]).logsumexp(-1)


def relax_softmax(l: Tensor, u: Tensor) -> Dense:
    """The best planes at the centre of the box l <= x <= u, on the last axis; worked out in float64."""
    dtype, l, u = l.dtype, l.double(), u.double()
    logs = _log_extreme(l, u), _log_extreme(u, l)
    flat = torch.zeros((*l.shape, l.shape[-1]), dtype=l.dtype, device=l.device)
    below = [(flat, logs[0].exp()), _ratio_below(l, u), _lse_below(l, u)]
    above = [(flat, logs[1].exp()), _ratio_above(l, u, *logs), _lse_above(l, u, *logs)]
    slack = max(1e-11, 8 * torch.finfo(dtype).eps)
    planes = (*_best(below, l, u, 1.0, slack), *_best(above, l, u, -1.0, slack))
    return Dense(*(t.to(dtype) for t in planes))


def _best(
    planes: list[tuple[Tensor, Tensor]], l: Tensor, u: Tensor, sign: float, slack: float
) -> tuple[Tensor, Tensor]:
    """Of planes, given as slopes and values at the centre, the best ones there: slopes, and intercepts with slack."""
    slope, best = planes[0]
    for other, value in planes[1:]:
        better = sign * value > sign * best
        slope, best = torch.where(better[..., None], other, slope), torch.where(better, value, best)
    size = (slope.abs() @ l.abs().maximum(u.abs())[..., None])[..., 0] + best.abs()
    intercept = best - (slope @ ((l + u) / 2)[..., None])[..., 0]
    return slope, intercept - sign * slack * size


def _turned(slope: Tensor) -> Tensor:
    """From slopes on x_i - x_j (row j, any diagonal) to slopes on x."""
    slope = slope - torch.diag_embed(slope.diagonal(dim1=-2, dim2=-1))
    return slope - torch.diag_embed(slope.sum(-1))


def _rise(width: Tensor, at_l: Tensor, at_u: Tensor, at_middle: Tensor) -> Tensor:
    """The slope of exp's chord, given its values; its slope in the middle where the chord's is rounding."""
    tiny = width <= 1e-6
    return torch.where(tiny, at_middle, (at_u - at_l) / torch.where(tiny, 1.0, width))


def _ratio_below(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """1 / Q >= 1 / Q0 - (Q - Q0) / Q0^2 for the sum Q of the chords of exp(x_i - x_j), Q0 at the centre (their 3.2)."""
    eye = torch.eye(l.shape[-1], dtype=torch.bool, device=l.device)
    low = (l[..., None, :] - u[..., :, None]).masked_fill(eye, 0.0)
    high = (u[..., None, :] - l[..., :, None]).masked_fill(eye, 0.0)
    top = high.amax(-1, keepdim=True)  # scales every exponential, so that none overflows
    at_l, at_u = (low - top).exp(), (high - top).exp()
    slope = _rise(high - low, at_l, at_u, ((low + high) / 2 - top).exp())
    q = ((at_l + at_u) / 2).sum(-1, keepdim=True)
    return _turned(-(-top).exp() * slope / q**2), ((-top).exp() / q)[..., 0]


def _ratio_above(l: Tensor, u: Tensor, log_low: Tensor, log_high: Tensor) -> tuple[Tensor, Tensor]:
    """1 / q <= y_l + y_u - y_l y_u q, q at least the sum of the tangents of exp(x_i - x_j) at the centre."""
    middle = (l + u) / 2
    gap = middle[..., None, :] - middle[..., :, None]
    weight = (gap + log_low[..., None]).exp() * log_high[..., None].exp()
    return _turned(-weight), log_low.exp() + log_high.exp() - weight.sum(-1)


def _lse_below(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """exp(x_j - log A), convex for the sum A of the chords of exp(x_i): its tangent plane at the centre (their 4)."""
    top, middle = u.amax(-1, keepdim=True), (l + u) / 2
    at_l, at_u, at_middle = (l - top).exp(), (u - top).exp(), (middle - top).exp()
    total = ((at_l + at_u) / 2).sum(-1, keepdim=True)
    value = at_middle / total
    share = _rise(u - l, at_l, at_u, at_middle) / total
    return value[..., None] * (torch.eye(l.shape[-1], dtype=l.dtype, device=l.device) - share[..., None, :]), value


def _lse_above(l: Tensor, u: Tensor, log_low: Tensor, log_high: Tensor) -> tuple[Tensor, Tensor]:
    """The chord of exp over the range of z = x_j - logsumexp(x), which is concave: its tangent plane at the centre."""
    z = ((l + u) / 2).log_softmax(-1)
    low, high = log_low.exp(), log_high.exp()
    rise = _rise(log_high - log_low, low, high, ((log_low + log_high) / 2).exp())
    slope = torch.eye(l.shape[-1], dtype=l.dtype, device=l.device) - z.exp()[..., None, :]
    return rise[..., None] * slope, high.maximum(low) - rise * (log_high - z)


class Softmax(Rule):
    """softmax(x, dim) by dense planes, or decomposed."""

    mixes = True
    exp, inverse = kept(relax_exp, interval_exp), kept(relax_reciprocal, interval_reciprocal)
    product = Product()

    def interval(self, call: Call) -> Interval:
        l, u = _last(call)
        return Interval(*(t.movedim(-1, call.args[1]) for t in interval_softmax(l, u)))

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if _decomposed(call):
            return self._backward(call, a)
        dim = _axis(call)
        planes, last = _planes(call), a.movedim(dim + 1, -1)[..., None, :]
        part = (positive(last) @ planes.lower_slope + negative(last) @ planes.upper_slope)[..., 0, :]
        lower, upper = (t.movedim(-1, dim) for t in (planes.lower, planes.upper))
        return (part.movedim(-1, dim + 1),), call.dot(positive(a), lower) + call.dot(negative(a), upper)

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        dim, (form,), planes = _axis(call), forms, _planes(call)

        def side(slope: Tensor, low: Tensor, high: Tensor, dim: int) -> Tensor:
            first, second = (t.movedim(dim, -1)[..., None] for t in (low, high))
            return (positive(slope) @ first + negative(slope) @ second)[..., 0].movedim(-1, dim)

        low, high = planes.lower_slope, planes.upper_slope
        return Form(
            side(low, form.lower_slope, form.upper_slope, dim + 1),
            side(low, form.lower_intercept, form.upper_intercept, dim) + planes.lower.movedim(-1, dim),
            side(high, form.upper_slope, form.lower_slope, dim + 1),
            side(high, form.upper_intercept, form.lower_intercept, dim) + planes.upper.movedim(-1, dim),
        )

    def _backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """exp(x - c) * (1 / sum exp(x - c)), c the largest upper end: softmax ignores what is added to all entries."""
        exp, inverse, times, top = call.once("parts", lambda: self._parts(call))
        (on_e, on_inverse), constant = self.product.backward(times, a)
        (on_sum,), more = self.inverse.backward(inverse, on_inverse)
        (part,), rest = self.exp.backward(exp, on_e + on_sum)
        return (part,), total(total(constant, more), total(rest, -call.dot(part, top)))

    def _parts(self, call: Call) -> tuple[Call, Call, Call, Tensor]:
        """The exponentials, the reciprocal of their sum and the product as calls of their own, and c."""
        dim, (x,) = _axis(call), call.inputs
        top = x.upper.amax(dim, keepdim=True).detach()
        exp = replace(call, args=(Interval(x.lower - top, x.upper - top),), kwargs={}, op=aten.exp.default)
        e = self.exp.interval(exp)
        inverse = replace(exp, args=(Interval(e.lower.sum(dim, True), e.upper.sum(dim, True)),))
        times = replace(exp, args=(e, self.inverse.interval(inverse)), op=aten.mul.Tensor)
        return exp, inverse, times, top


def _axis(call: Call) -> int:
    dim: int = call.args[1]
    return dim % call.inputs[0].lower.dim()


def _last(call: Call) -> tuple[Tensor, Tensor]:
    """Both ends with softmax's axis last."""
    (x,) = call.inputs
    return x.lower.movedim(_axis(call), -1), x.upper.movedim(_axis(call), -1)


def _planes(call: Call) -> Dense:
    found: Dense = call.once("planes", lambda: relax_softmax(*_last(call)))
    return found


def _decomposed(call: Call) -> bool:
    kind = call.options.get("softmax", "dense")
    if kind not in ("dense", "decomposed"):
        raise unknown("relaxation of softmax", kind, ("dense", "decomposed"))
    return kind == "decomposed"


register(Softmax(), aten.softmax.int, aten._softmax.default)
