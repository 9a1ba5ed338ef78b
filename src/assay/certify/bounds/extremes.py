"""The larger and the smaller of two tensors, and extremes along an axis as a tournament of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.certify.bounds.interval import Interval
from assay.certify.bounds.products import summed
from assay.certify.bounds.registry import Call, Form, Rule, negative, positive, register
from assay.certify.bounds.relaxation import Lines
from assay.certify.bounds.relu import relax_relu

aten = torch.ops.aten


class Extreme(Rule):
    """max(x, y) = y + relu(x - y) with the triangle of relu, or min(x, y) = y - relu(y - x); either may be constant.

    Below the larger one lies the input that is above at the centre, above it the plane through the ends of the
    difference; where one is certain to be larger it is exact.
    """

    mixes = False

    def __init__(self, *, least: bool = False) -> None:
        self.least = least

    def interval(self, call: Call) -> Interval:
        return Interval(call.run(*(v.lower for v in call.inputs)), call.run(*(v.upper for v in call.inputs)))

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        return None

    def needed(self, call: Call) -> tuple[Tensor, ...]:
        x, y = _sides(call)
        open_ = ((x.lower < y.upper) & (y.lower < x.upper)).int()
        return tuple(open_.sum_to_size(v.lower.shape) > 0 for v in call.inputs)

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        lines = self._lines(call)
        up, down = positive(a), negative(a)
        share = up * lines.lower_slope + down * lines.upper_slope  # of x, the rest is y's
        constant = call.dot(up, lines.lower_intercept) + call.dot(down, lines.upper_intercept)
        parts = []
        for side, part in zip(call.args[:2], (share, a - share), strict=True):
            if isinstance(side, Interval):
                parts.append(summed(part, side.lower.shape))
            else:
                constant = constant + call.dot(part, side)
        return tuple(parts), constant

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        lines, rest = self._lines(call), iter(forms)
        sides = [next(rest) if isinstance(side, Interval) else _fixed(side, forms[0]) for side in call.args[:2]]

        def mixed(slope: Tensor, *pair: Tensor) -> Tensor:  # both shares lie in [0, 1]
            return slope * pair[0] + (1 - slope) * pair[1]

        low, high = lines.lower_slope, lines.upper_slope
        return Form(
            mixed(low, *(f.lower_slope for f in sides)),
            mixed(low, *(f.lower_intercept for f in sides)) + lines.lower_intercept,
            mixed(high, *(f.upper_slope for f in sides)),
            mixed(high, *(f.upper_intercept for f in sides)) + lines.upper_intercept,
        )

    def _lines(self, call: Call) -> Lines:
        """Lines k (x - y) + b around the output less y: the slopes are x's share."""
        x, y = _sides(call)
        if not self.least:
            return relax_relu(x.lower - y.upper, x.upper - y.lower)
        lines = relax_relu(y.lower - x.upper, y.upper - x.lower)  # of relu(y - x), which is taken from y
        return Lines(lines.upper_slope, -lines.upper_intercept, lines.lower_slope, -lines.lower_intercept)


def _sides(call: Call) -> tuple[Interval, Interval]:
    """Both arguments, a constant as an interval of no width."""
    x, y = (v if isinstance(v, Interval) else Interval(v, v) for v in call.args[:2])
    return x, y


def _fixed(value: Tensor, like: Form) -> Form:
    """A constant as a form."""
    flat = value.new_zeros((len(like.lower_slope), *[1] * like.lower_intercept.dim()))
    return Form(flat, value, flat, value)


def _tournament(pick: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The extreme along given axes: halves are paired until one element is left."""

    def run(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
        dims = [d % x.dim() for d in dims] if dims else list(range(x.dim()))
        for d in dims:
            while x.shape[d] > 1:
                half = x.shape[d] // 2
                best = pick(x.narrow(d, 0, half), x.narrow(d, half, half))
                x = best if x.shape[d] % 2 == 0 else torch.cat((best, x.narrow(d, 2 * half, 1)), d)
        return x if keepdim else x.squeeze(dims)

    return run


def _with_place(extreme: Callable[..., Tensor], place: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The extreme along one axis, and where it is."""
    return lambda x, dim, keepdim=False: (extreme(x, [dim], keepdim), place(x, dim, keepdim))


def _clamped(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


largest, smallest = _tournament(torch.maximum), _tournament(torch.minimum)
EXTREMES: dict[Any, Callable[..., Any]] = {
    aten.amax.default: lambda x, dim=(), keepdim=False: largest(x, list(dim), keepdim),
    aten.amin.default: lambda x, dim=(), keepdim=False: smallest(x, list(dim), keepdim),
    aten.max.dim: _with_place(largest, torch.argmax),
    aten.min.dim: _with_place(smallest, torch.argmin),
    aten.clamp.Tensor: _clamped,
}
register(Extreme(), aten.maximum.default)
register(Extreme(least=True), aten.minimum.default)
