"""Products of two activations: elementwise, matrix products, and quotients.

McCormick's planes (1976; for networks: Shi et al., 2020, arXiv:2002.06622, section 3.3): for lx <= x <= ux and
ly <= y <= uy, x y lies above ly x + lx y - lx ly and uy x + ux y - ux uy, and below uy x + lx y - lx uy and
ly x + ux y - ux ly. All mixtures of the two on a side agree at the box's centre. The option ``plane`` in [0, 1] is the
weight of the second: 1/2, the default, is the plane with the slopes of x y at the centre, the same below and above.
"""

# ruff: noqa: E741
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.certify.bounds.affine import Factor, Reshape
from assay.certify.bounds.interval import Interval
from assay.certify.bounds.registry import Call, Form, Rule, negative, positive, register
from assay.certify.bounds.relaxation import Lines, Unary
from assay.certify.bounds.unary import interval_reciprocal, interval_square, relax_reciprocal, relax_square
from assay.runtime.errors import InputError

aten = torch.ops.aten
BUDGET = 2**24  # products of corners held at once


@dataclass(frozen=True)
class Planes:
    """lower_x x + slope_y y + lower <= x y <= upper_x x + slope_y y + upper.

    ``lower_x`` and ``upper_x`` have y's shape, which x is multiplied by; ``slope_y`` has x's, the intercepts the
    product's.
    """

    lower_x: Tensor
    upper_x: Tensor
    slope_y: Tensor
    lower: Tensor
    upper: Tensor


def relax_product(
    lx: Tensor,
    ux: Tensor,
    ly: Tensor,
    uy: Tensor,
    plane: float = 0.5,
    product: Callable[[Tensor, Tensor], Tensor] = torch.mul,
) -> Planes:
    """McCormick's planes of a bilinear ``product``, with weight ``plane`` on the second one of each side."""
    if not 0 <= plane <= 1:
        raise InputError(f"bounds: plane is {plane}; expected a number from 0 to 1")
    first, second = 1 - plane, plane
    return Planes(
        first * ly + second * uy,
        first * uy + second * ly,
        first * lx + second * ux,
        -first * product(lx, ly) - second * product(ux, uy),
        -first * product(lx, uy) - second * product(ux, ly),
    )


class Bilinear(Rule):
    """A product of two perturbed tensors, linear in each; a subclass states how coefficients pass to either."""

    @abstractmethod
    def on_first(self, a: Tensor, y: Tensor) -> Tensor:
        """From coefficients a of x y to those of x, before sums over what was broadcast."""

    @abstractmethod
    def on_second(self, a: Tensor, x: Tensor) -> Tensor:
        """From coefficients a of x y to those of y."""

    def rounding(self, call: Call, out: Interval) -> Tensor:
        size: Tensor = call.run(*(v.magnitude for v in call.inputs))
        return size

    def needed(self, call: Call) -> tuple[Tensor, ...]:
        return tuple(x.lower < x.upper for x in call.inputs)

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        planes, (x, y) = _planes(call), call.inputs
        up, down = positive(a), negative(a)
        if planes.lower_x is planes.upper_x:
            on_x = self.on_first(a, planes.lower_x)
        else:
            on_x = self.on_first(up, planes.lower_x) + self.on_first(down, planes.upper_x)
        on_y = self.on_second(a, planes.slope_y)
        constant = call.dot(up, planes.lower) + call.dot(down, planes.upper)
        return (_summed(on_x, x.lower.shape), _summed(on_y, y.lower.shape)), constant

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        planes, (x, y) = _planes(call), forms
        on_y = _pushed(lambda t, s: call.run(s, t), y, planes.slope_y, planes.slope_y)
        on_x = _pushed(call.run, x, planes.lower_x, planes.upper_x)
        return Form(
            on_x.lower_slope + on_y.lower_slope,
            on_x.lower_intercept + on_y.lower_intercept + planes.lower,
            on_x.upper_slope + on_y.upper_slope,
            on_x.upper_intercept + on_y.upper_intercept + planes.upper,
        )


def _planes(call: Call) -> Planes:
    """Its planes over the intervals of both, worked out once."""
    (x, y), plane = call.inputs, call.options.get("plane", 0.5)

    def compute() -> Planes:
        planes = relax_product(x.lower, x.upper, y.lower, y.upper, plane, call.run)
        return replace(planes, upper_x=planes.lower_x) if plane == 0.5 else planes

    found: Planes = call.once("planes", compute)
    return found


def _summed(t: Tensor, shape: torch.Size) -> Tensor:
    """(s, *shape of the product) summed to (s, *shape) over what was broadcast."""
    extra = t.dim() - 1 - len(shape)
    t = t.sum(list(range(1, extra + 1))) if extra else t
    wide = [k + 1 for k, size in enumerate(shape) if size == 1 and t.shape[k + 1] != 1]
    return t.sum(wide, keepdim=True) if wide else t


def _pushed(product: Callable[[Tensor, Tensor], Tensor], form: Form, below: Tensor, above: Tensor) -> Form:
    """The form of a perturbed factor times constants: ``below`` for the lower side, ``above`` for the upper."""

    def side(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], by: Tensor) -> list[Tensor]:
        up, down = positive(by), negative(by)
        slope = torch.func.vmap(lambda s, t: product(s, up) + product(t, down))(first[0], second[0])
        return [slope, product(first[1], up) + product(second[1], down)]

    low, high = (form.lower_slope, form.lower_intercept), (form.upper_slope, form.upper_intercept)
    return Form(*side(low, high, below), *side(high, low, above))


def kept(
    relax: Callable[[Tensor, Tensor], Lines], interval: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Unary:
    """An elementwise step inside a rule, whose lines are worked out once a call."""
    return Unary(lambda l, u, call: call.once("lines", lambda: relax(l, u)), lambda l, u, call: interval(l, u))


class Product(Bilinear):
    """x * y with both perturbed, broadcast; x * x is a square."""

    square = kept(relax_square, interval_square)

    def on_first(self, a: Tensor, y: Tensor) -> Tensor:
        return a * y

    def on_second(self, a: Tensor, x: Tensor) -> Tensor:
        return a * x

    def interval(self, call: Call) -> Interval:
        x, y = call.inputs
        if x is y:
            return self.square.interval(_alone(call))
        corners = [call.run(s, t) for s in (x.lower, x.upper) for t in (y.lower, y.upper)]
        return Interval(
            torch.minimum(corners[0].minimum(corners[1]), corners[2].minimum(corners[3])),
            torch.maximum(corners[0].maximum(corners[1]), corners[2].maximum(corners[3])),
        )

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        x, y = call.inputs
        if x is not y:
            return super().backward(call, a)
        (part,), constant = self.square.backward(_alone(call), a)
        return (part, torch.zeros_like(part)), constant

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        x, y = call.inputs
        return super().forward(call, forms) if x is not y else self.square.forward(_alone(call), forms[:1])


def _alone(call: Call) -> Call:
    """x * x as an operator of x."""
    found: Call = call.once("alone", lambda: replace(call, args=call.inputs[:1]))
    return found


def total(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two constants, None being zero."""
    return second if first is None else first if second is None else first + second


class MatrixProduct(Bilinear):
    """x @ y with both perturbed, as in attention."""

    mixes = True

    def on_first(self, a: Tensor, y: Tensor) -> Tensor:
        return a @ y.mT

    def on_second(self, a: Tensor, x: Tensor) -> Tensor:
        return x.mT @ a

    def interval(self, call: Call) -> Interval:
        x, y = call.inputs
        if min(x.lower.dim(), y.lower.dim()) < 2:
            raise call.error("a product of a matrix and a vector, both perturbed", "two matrices")
        parts = [_corners(x, y, rows) for rows in torch.arange(x.lower.shape[-2]).split(_rows(x, y))]
        return Interval(torch.cat([p[0] for p in parts], -2), torch.cat([p[1] for p in parts], -2))


def _rows(x: Interval, y: Interval) -> int:
    """How many rows of x are multiplied at once."""
    one = x.lower[..., :1, :].numel() * y.lower.shape[-1]
    return max(1, BUDGET // max(1, one))


def _corners(x: Interval, y: Interval, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of the four corners of every product, summed."""
    left = [t.index_select(-2, rows.to(t.device))[..., None] for t in (x.lower, x.upper)]
    corners = [s * t[..., None, :, :] for s in left for t in (y.lower, y.upper)]
    low, high = corners[0], corners[0]
    for corner in corners[1:]:
        low, high = low.minimum(corner), high.maximum(corner)
    return low.sum(-2), high.sum(-2)


class MatrixFactor(Factor):
    """x @ W or W @ x with W constant."""

    mixes = True


class Ratio(Rule):
    """x / y with both perturbed and y away from zero: the product of x and 1 / y."""

    product = Product()
    inverse = kept(relax_reciprocal, interval_reciprocal)

    def interval(self, call: Call) -> Interval:
        return self.product.interval(self._parts(call)[0])

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        times, inverse = call.once("parts", lambda: self._parts(call))
        (on_x, on_inverse), constant = self.product.backward(times, a)
        (on_y,), more = self.inverse.backward(inverse, on_inverse)
        return (on_x, on_y), total(constant, more)

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        times, inverse = self._parts(call)
        return self.product.forward(times, (forms[0], self.inverse.forward(inverse, forms[1:])))

    def _parts(self, call: Call) -> tuple[Call, Call]:
        """The product and the reciprocal as calls of their own."""
        x, y = call.inputs
        if ((y.lower <= 0) & (y.upper >= 0)).any():
            raise call.error("division by values that may be zero", "a divisor whose bounds exclude zero")
        inverse = replace(call, op=aten.reciprocal.default, args=(y,))
        return replace(call, op=aten.mul.Tensor, args=(x, self.inverse.interval(inverse))), inverse


register(Reshape(), aten._unsafe_view.default)
register(Product(), aten.mul.Tensor, inputs=2)
register(MatrixProduct(), aten.matmul.default, aten.bmm.default, aten.mm.default, inputs=2)
register(MatrixFactor(), aten.matmul.default, aten.bmm.default, aten.mm.default)
register(Ratio(), aten.div.Tensor, inputs=2)
