"""Linear relaxations of unary operators: two lines that hold between the ends of an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.certify.bounds.interval import Interval
from assay.certify.bounds.registry import Call, Form, Rule, negative, positive
from assay.certify.bounds.windows import Windows


@dataclass(frozen=True)
class Lines:
    """lower_slope h + lower_intercept <= op(h) <= upper_slope h + upper_intercept for every h in [l, u].

    Each of the shape of l and u (or with one more leading axis, where each row of a specification has its own).
    """

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


@dataclass(frozen=True)
class Unary(Rule):
    """An elementwise operator, from its relaxation and its interval.

    ``relax(l, u, call) -> Lines`` and ``range(l, u, call) -> (lower, upper)``: ``call`` gives further arguments,
    options and, where ``tunable``, ``call.slope``. ``range`` None: increasing, so the operator at both ends. ``bends``
    (l, u) marks the elements whose bounds the lines depend on (None: where l < u). ``rounds`` is False for operators
    that only pick values.
    """

    relax: Callable[[Tensor, Tensor, Call], Lines]
    range: Callable[[Tensor, Tensor, Call], tuple[Tensor, Tensor]] | None = None
    bends: Callable[[Tensor, Tensor], Tensor] | None = None
    rounds: bool = True
    tunable: bool = False

    def interval(self, call: Call) -> Interval:
        (x,) = self._input(call)
        if self.range is None:
            return Interval(call.run(x.lower), call.run(x.upper))
        return Interval(*self.range(x.lower, x.upper, call))

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        return out.magnitude if self.rounds else None

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        (x,) = self._input(call)
        lines = self.relax(x.lower, x.upper, call)
        up, down = positive(a), negative(a)
        constant = call.dot(up, lines.lower_intercept) + call.dot(down, lines.upper_intercept)
        return (up * lines.lower_slope + down * lines.upper_slope,), constant

    def windowed(self, call: Call, a: Windows) -> tuple[tuple[Windows], Tensor]:
        (x,) = self._input(call)
        lines = self.relax(x.lower, x.upper, call)
        up, down = a.having(positive(a.values)), a.having(negative(a.values))
        constant = down.dot(lines.upper_intercept)
        if lines.lower_intercept.any():
            constant = constant + up.dot(lines.lower_intercept)
        values = up.values * a.read(lines.lower_slope) + down.values * a.read(lines.upper_slope)
        return (a.having(values),), constant

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        (x,), (form,) = self._input(call), forms
        lines = self.relax(x.lower, x.upper, call)
        low_up, low_down = positive(lines.lower_slope), negative(lines.lower_slope)
        top_up, top_down = positive(lines.upper_slope), negative(lines.upper_slope)
        return Form(
            low_up * form.lower_slope + low_down * form.upper_slope,
            low_up * form.lower_intercept + low_down * form.upper_intercept + lines.lower_intercept,
            top_up * form.upper_slope + top_down * form.lower_slope,
            top_up * form.upper_intercept + top_down * form.lower_intercept + lines.upper_intercept,
        )

    def needed(self, call: Call) -> tuple[Tensor, ...]:
        (x,) = self._input(call)
        return (self.bends(x.lower, x.upper) if self.bends is not None else x.lower < x.upper,)

    def _input(self, call: Call) -> tuple[Interval]:
        inputs = call.inputs
        if len(inputs) != 1:
            raise call.error(f"{len(inputs)} perturbed arguments of {call.op}", "one")
        return (inputs[0],)


def chord(l: Tensor, u: Tensor, at_l: Tensor, at_u: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Slope and intercept of the line through both ends; ``flat`` is the slope where the ends meet."""
    width = u - l
    meets = width <= 0
    slope = torch.where(meets, flat, (at_u - at_l) / torch.where(meets, 1.0, width))
    return slope, at_l - slope * l
