"""Pooling, and dropout in evaluation mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.certify.bounds.affine import Monotone
from assay.certify.bounds.interval import Interval
from assay.certify.bounds.registry import Call, Form, Rule, negative, positive, register

aten = torch.ops.aten
Pair = tuple[int, int]
LOWEST = -1e30  # stands beyond the border


class Same(Monotone):
    """The first argument unchanged. ``training``: the position of a flag that must be off."""

    def __init__(self, training: int | None = None) -> None:
        super().__init__()
        self.training = training

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        return (a,)

    def interval(self, call: Call) -> Interval:
        if self.training is not None and call.args[self.training]:
            raise call.error("dropout that is on", "evaluation mode, and training=self.training")
        return call.inputs[0]


class MaxPool(Rule):
    """Maxima over windows.

    With m the largest lower bound in a window: the maximum is at least the element that has it; and at most
    m + sum_j u'_j (h_j - l_j) over the elements with u_j > m, the triangles of max(h) <= m + sum_j relu(h_j - m)
    (so that element itself where no other upper bound exceeds m), or the largest upper bound, whichever is less at the
    centre of the intervals. Option "max_pool": "constant" takes the largest upper bound unless the maximum is known.
    """

    mixes = True

    def __init__(self, *, adaptive: bool = False) -> None:
        self.adaptive = adaptive

    def interval(self, call: Call) -> Interval:
        (x,) = call.inputs
        return Interval(call.run(x.lower), call.run(x.upper))

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        return None

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        (x,) = call.inputs
        below, above, top = self._planes(call, x)
        flat = a.flatten(3)  # (s, n, c, windows)
        spread = positive(flat)[:, :, :, None] * below + negative(flat)[:, :, :, None] * above
        constant = (negative(flat) * top).flatten(2).sum(2)
        return (self._fold(call, spread, x.lower),), constant

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        (x,), (form,) = call.inputs, forms
        below, above, top = self._planes(call, x)
        shape = call.run(x.lower).shape[2:]

        def through(t: Tensor, weight: Tensor) -> Tensor:
            return (self._unfold(call, t, 0.0) * weight).sum(-2).unflatten(-1, shape)

        def all_of(slope: Tensor, weight: Tensor) -> Tensor:
            found = through(slope.flatten(0, 1), weight.repeat(len(slope), 1, 1, 1))
            return found.unflatten(0, slope.shape[:2])

        return Form(
            all_of(form.lower_slope, below),
            through(form.lower_intercept, below),
            all_of(form.upper_slope, above),
            through(form.upper_intercept, above) + top.unflatten(-1, shape),
        )

    def needed(self, call: Call) -> tuple[Tensor, ...]:
        (x,) = call.inputs
        lower, upper = self._unfold(call, x.lower, LOWEST), self._unfold(call, x.upper, LOWEST)
        open_ = upper > lower.amax(2, keepdim=True)
        open_ = (open_ & (open_.sum(2, keepdim=True) > 1)).to(x.lower)
        return (self._fold(call, open_[None], x.lower)[0] > 0,)

    def _planes(self, call: Call, x: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients below and above (n, c, elements, windows) and the constant above (n, c, windows)."""
        lower, upper = self._unfold(call, x.lower, LOWEST), self._unfold(call, x.upper, LOWEST)
        m = lower.amax(2, keepdim=True)
        best = F.one_hot(lower.argmax(2), lower.shape[2]).movedim(3, 2).to(lower)
        open_, width = upper > m, upper - lower
        safe = torch.where(open_ & (width > 0), width, 1.0)
        slope = torch.where(open_ & (width > 0), (upper - lower.maximum(m)) / safe, 0.0)
        slope = torch.where(open_ & (lower >= m), 1.0, slope)
        start = torch.where(open_, lower, 0.0)
        alone = (open_ & (best == 0)).sum(2) == 0
        slope = torch.where(alone[:, :, None], best, slope)
        lift = torch.where(alone, 0.0, m[:, :, 0] - (slope * start).sum(2))
        top = upper.amax(2)
        middle = torch.where(lower > LOWEST, (lower + upper) / 2, 0.0)
        flat = ~alone & (((slope * middle).sum(2) + lift > top) | (call.options.get("max_pool") == "constant"))
        return best, torch.where(flat[:, :, None], 0.0, slope), torch.where(flat, top, lift)

    def _window(self, call: Call) -> tuple[Pair, Pair, Pair, Pair]:
        """Kernel, stride, padding, dilation of a pooling over one or two axes."""
        dims = call.inputs[0].lower.dim() - 2
        if dims > 2 or self.adaptive:
            raise call.error("linear bounds of max pooling", "fixed windows over one or two axes")
        given = (*call.args[1:5], *([], 0, 1)[len(call.args) - 2 :])
        kernel, stride, dilation = (_pair(given[k], dims, 1) for k in (0, 1, 3))
        padding = _pair(given[2], dims, 0)
        if len(call.args) > 5 and call.args[5]:
            raise call.error("max pooling with ceil_mode", "ceil_mode=False")
        return kernel, stride if stride[1] else kernel, padding, dilation

    def _unfold(self, call: Call, x: Tensor, fill: float) -> Tensor:
        """(n, c, ...) as (n, c, elements of a window, windows)."""
        kernel, stride, padding, dilation = self._window(call)
        x = x[:, :, None] if x.dim() == 3 else x
        n, c = x.shape[:2]
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=fill)
        return F.unfold(x.flatten(0, 1)[:, None], kernel, dilation, 0, stride).unflatten(0, (n, c))

    def _fold(self, call: Call, spread: Tensor, x: Tensor) -> Tensor:
        """(s, n, c, elements, windows) added up into (s, *shape of x)."""
        kernel, stride, padding, dilation = self._window(call)
        sides = (1, x.shape[2]) if x.dim() == 3 else (x.shape[2], x.shape[3])
        out = F.fold(spread.flatten(0, 2), sides, kernel, dilation, padding, stride)
        return out.reshape(len(spread), *x.shape)


def _pair(value: Any, dims: int, first: int) -> Pair:
    """A size for each of two axes, ``first`` for the one that a single axis is given beside it; [] is 0."""
    values = list(value) if isinstance(value, list | tuple) else [value] * dims
    values = (values or [0]) * (dims if len(values) < 2 else 1)
    return (values[0], values[1]) if dims == 2 else (first, values[0])


register(Same(training=2), aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
register(MaxPool(), aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
register(MaxPool(), aten.max_pool2d_with_indices.default)
register(
    MaxPool(adaptive=True),
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)
register(Monotone(rounds=True, mixes=True), aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
register(Monotone(rounds=True, mixes=True), aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)
register(Monotone(rounds=True, mixes=True), aten.adaptive_avg_pool3d.default)
