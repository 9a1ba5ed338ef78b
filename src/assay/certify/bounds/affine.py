"""Operators that are linear in what is perturbed: matrix products, convolution, sums, constant factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.certify.bounds.interval import Ball, Interval
from assay.certify.bounds.registry import Call, Form, Rule, leaves, register
from assay.certify.bounds.windows import Windows

aten = torch.ops.aten


class Linear(Rule):
    """out = linear(inputs) + constant. A subclass states ``linear`` and ``size``, the same with absolute coefficients.

    Interval: linear(centers) + constant +- size(radii) (Gowal et al., 2018, arXiv:1810.12715, eq. 6); a form is bounded
    alike, coefficient by coefficient.
    """

    exact = True
    mixes = True

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        """The linear part on tensors of the inputs' shapes."""
        raise NotImplementedError

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        """The linear part with each coefficient's absolute value."""
        raise NotImplementedError

    def constant(self, call: Call) -> Tensor | None:
        """What is added, broadcastable to the output; None for nothing."""
        return None

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        """The transposed linear part on coefficients (s, *shape of the output)."""
        pull: Any = torch.func.vjp(lambda *t: self.linear(call, *t), *(x.lower for x in call.inputs))[1]
        found: tuple[Tensor, ...] = torch.func.vmap(pull)(a)
        return found

    def interval(self, call: Call) -> Interval:
        middle = self._shifted(call, self.linear(call, *(x.center for x in call.inputs)))
        radius = self.size(call, *(x.radius for x in call.inputs))
        box, first = Interval(middle - radius, middle + radius), call.inputs[0]
        return box if not isinstance(first, Ball) or len(call.inputs) > 1 else self.round(call, first).within(box)

    def round(self, call: Call, ball: Ball) -> Interval:
        """The output's interval over an l2 ball: linear(x) + constant +- sqrt(squares(eps^2))."""
        squares = self.squares(call, ball.eps**2)
        if squares is None:
            return Interval(*(torch.full((1,), s * torch.inf).to(ball.x) for s in (-1, 1)))
        middle, radius = self._shifted(call, self.linear(call, ball.x)), squares.sqrt()
        return Interval(middle - radius, middle + radius)

    def squares(self, call: Call, t: Tensor) -> Tensor | None:
        """The linear part with each coefficient squared; None where there is none and the box has to do."""
        return None

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        size, constant = self.size(call, *(x.magnitude for x in call.inputs)), self.constant(call)
        return size if constant is None else size + constant.abs()

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        constant = self.constant(call)
        return self.transpose(call, a), None if constant is None else call.dot(a, constant)

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        slope = self._over(call, self.linear, [(f.upper_slope + f.lower_slope) / 2 for f in forms])
        spread = self._over(call, self.size, [(f.upper_slope - f.lower_slope) / 2 for f in forms])
        middle = self.linear(call, *((f.upper_intercept + f.lower_intercept) / 2 for f in forms))
        middle = self._shifted(call, middle)
        width = self.size(call, *((f.upper_intercept - f.lower_intercept) / 2 for f in forms))
        return Form(slope - spread, middle - width, slope + spread, middle + width)

    def _over(self, call: Call, f: Callable[..., Tensor], parts: list[Tensor]) -> Tensor:
        found: Tensor = torch.func.vmap(lambda *t: f(call, *t))(*parts)
        return found

    def _shifted(self, call: Call, out: Tensor) -> Tensor:
        constant = self.constant(call)
        return out if constant is None else out + constant


class Matrix(Linear):
    """``linear(x, weight, bias)`` with x or the weight perturbed: a product on the last axis.

    A perturbed weight has one matrix for each sample, (n, out, in); x is then (n, in).
    """

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        x, weight, by_weight = self._parts(call)
        return (inputs[0] @ x[:, :, None])[..., 0] if by_weight else inputs[0] @ weight.T

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        x, weight, by_weight = self._parts(call)
        return (inputs[0] @ x.abs()[:, :, None])[..., 0] if by_weight else inputs[0] @ weight.abs().T

    def squares(self, call: Call, t: Tensor) -> Tensor:
        x, weight, by_weight = self._parts(call)
        return (t @ (x**2)[:, :, None])[..., 0] if by_weight else t @ (weight**2).T

    def constant(self, call: Call) -> Tensor | None:
        return call.args[2] if len(call.args) > 2 else None

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        x, weight, by_weight = self._parts(call)
        return (a[..., None] * x[:, None] if by_weight else a @ weight,)

    def _parts(self, call: Call) -> tuple[Any, Any, bool]:
        x, weight = call.args[:2]
        by_weight = isinstance(weight, Interval)
        if by_weight and not isinstance(x, Interval) and x.dim() != 2:
            raise call.error(f"a perturbed weight on shape {tuple(x.shape)}", "(n, d)")
        return x, weight, by_weight


class Convolution(Linear):
    """``conv(x, weight, bias, stride, padding, dilation, groups)`` with x perturbed and zero padding."""

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        return self._run(call, inputs[0], call.args[1])

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        return self._run(call, inputs[0], call.args[1].abs())

    def squares(self, call: Call, t: Tensor) -> Tensor:
        return self._run(call, t, call.args[1] ** 2)

    def constant(self, call: Call) -> Tensor | None:
        bias = call.args[2] if len(call.args) > 2 else None
        return None if bias is None else bias.reshape(-1, *[1] * (call.args[1].dim() - 2))

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        stride, padding, dilation, groups = self._geometry(call)
        if padding is None:
            return super().transpose(call, a)
        weight, shape = call.args[1], call.inputs[0].lower.shape
        sides = zip(shape[2:], a.shape[3:], weight.shape[2:], stride, padding, dilation, strict=True)
        extra = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in sides]
        back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
        out = back(a.flatten(0, 1), weight, None, stride, padding, extra, groups, dilation)
        return (out.unflatten(0, a.shape[:2]),)

    def windowed(self, call: Call, a: Windows) -> tuple[tuple[Windows | Tensor, ...], Tensor | None] | None:
        stride, padding, dilation, groups = self._geometry(call)
        if padding is None:
            return None
        constant, shape = self.constant(call), call.inputs[0].lower.shape
        found = a.through(call.args[1], stride, padding, dilation, groups, (shape[2], shape[3]))
        kept = found if found.small else found.dense()
        return (kept,), None if constant is None else (a.values * constant).flatten(2).sum(2)

    def _over(self, call: Call, f: Callable[..., Tensor], parts: list[Tensor]) -> Tensor:
        return f(call, parts[0].flatten(0, 1)).unflatten(0, parts[0].shape[:2])

    def _run(self, call: Call, x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = call.op(x, weight, None, *call.args[3:], **{k: v for k, v in call.kwargs.items() if k != "bias"})
        return out

    def _geometry(self, call: Call) -> tuple[list[int], list[int] | None, list[int], int]:
        """Stride, padding (None where it differs between the two ends), dilation, groups."""
        dims = call.args[1].dim() - 2
        given = (*call.args[3:], *(1, 0, 1, 1)[max(len(call.args) - 3, 0) :])
        stride, dilation = _sides(given[0], dims), _sides(given[2], dims)
        padding: list[int] | None = None
        if isinstance(given[1], str):
            reach = [d * (k - 1) for d, k in zip(dilation, call.args[1].shape[2:], strict=True)]
            even = all(r % 2 == 0 for r in reach)
            padding = [0] * dims if given[1] == "valid" else [r // 2 for r in reach] if even else None
        else:
            padding = _sides(given[1], dims)
        return stride, padding, dilation, given[3]


def _sides(value: Any, dims: int) -> list[int]:
    return list(value) if isinstance(value, list | tuple) and len(value) == dims else [_one(value)] * dims


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


class TransposedConvolution(Convolution):
    """``conv_transpose(x, weight, bias, stride, padding, output_padding, groups, dilation)`` with x perturbed."""

    def windowed(self, call: Call, a: Windows) -> None:
        return None

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        return Linear.transpose(self, call, a)


class BatchNorm(Linear):
    """Batch norm in evaluation mode: a scale and a shift for each channel."""

    mixes = False

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        return inputs[0] * self._fold(call)[0]

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        return inputs[0] * self._fold(call)[0].abs()

    def constant(self, call: Call) -> Tensor | None:
        return self._fold(call)[1]

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        return (a * self._fold(call)[0],)

    def windowed(self, call: Call, a: Windows) -> tuple[tuple[Windows], Tensor]:
        scale, shift, _ = self._fold(call)
        return (a.having(a.values * scale),), (a.values * shift).flatten(2).sum(2)

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        scale, shift, mean = self._fold(call)
        return scale.abs() * (call.inputs[0].magnitude + mean.abs()) + (shift + mean * scale).abs()

    def _fold(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, shift and mean, shaped to stand beside the batch axis."""
        _, weight, bias, mean, var, training, _, eps = call.args[:8]
        if training:
            raise call.error("batch norm in training mode", "evaluation mode")
        if mean is None or var is None:
            raise call.error("batch norm without running statistics", "track_running_stats=True")
        scale = (var + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        sides = [1] * (call.inputs[0].lower.dim() - 2)
        return scale.reshape(-1, *sides), shift.reshape(-1, *sides), mean.reshape(-1, *sides)


class Monotone(Linear):
    """Linear with coefficients >= 0: values that are moved, chosen, repeated, added or averaged.

    ``rounds``: it computes. ``shifts``: zeros may give other values (padding). Other tensors among the arguments (a
    constant beside the input in a sum or a cat) are kept.
    """

    def __init__(self, *, rounds: bool = False, mixes: bool = False, shifts: bool = False) -> None:
        self.rounds, self.mixes, self.shifts = rounds, mixes, shifts

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        out: Tensor = call.run(*inputs)
        constant = self.constant(call)
        return out if constant is None else out - constant

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        return self.linear(call, *inputs)

    def constant(self, call: Call) -> Tensor | None:
        others = leaves((call.args, call.kwargs))
        if not (self.rounds or self.shifts) and not any(
            isinstance(v, Tensor) and v.is_floating_point() for v in others
        ):
            return None
        found: Tensor = call.run(*(torch.zeros_like(x.lower) for x in call.inputs))
        return found

    def interval(self, call: Call) -> Interval:
        return Interval(call.run(*(x.lower for x in call.inputs)), call.run(*(x.upper for x in call.inputs)))

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        return super().rounding(call, out) if self.rounds else None


class Sum(Monotone):
    """a + alpha b with alpha >= 0."""

    def __init__(self) -> None:
        super().__init__(rounds=True)

    def interval(self, call: Call) -> Interval:
        if call.kwargs.get("alpha", 1) < 0:
            raise call.error(f"a sum with alpha {call.kwargs['alpha']}", "alpha >= 0, or a difference")
        return super().interval(call)

    def windowed(self, call: Call, a: Windows) -> tuple[tuple[Windows | Tensor, ...], Tensor | None] | None:
        constant = self.constant(call)
        alike = constant is not None and all(x.lower.shape == constant.shape for x in call.inputs)
        if not alike or constant is None or call.kwargs.get("alpha", 1) != 1:
            return None
        return (a,) * len(call.inputs), a.dot(constant)


class Reshape(Monotone):
    """The same values in another shape."""

    def interval(self, call: Call) -> Interval:
        box, first = super().interval(call), call.inputs[0]
        return first.reshape(*box.lower.shape) if isinstance(first, Ball) else box

    def transpose(self, call: Call, a: Tensor) -> tuple[Tensor, ...]:
        return (a.reshape(len(a), *call.inputs[0].lower.shape),)


class Difference(Linear):
    """a - alpha b, with either or both perturbed; ``reverse``: b - alpha a."""

    mixes = False

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        zeros = [torch.zeros_like(x.lower) for x in call.inputs]
        out: Tensor = call.run(*inputs) - call.run(*zeros)
        return out

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        parts = []
        for k, t in enumerate(inputs):
            zeros = [torch.zeros_like(x.lower) for x in call.inputs]
            zeros[k] = t
            parts.append(self.linear(call, *zeros).abs())
        return sum(parts[1:], parts[0])

    def constant(self, call: Call) -> Tensor | None:
        found: Tensor = call.run(*(torch.zeros_like(x.lower) for x in call.inputs))
        return found


class Factor(Linear):
    """A constant times a perturbed tensor, or a perturbed tensor over a constant other than zero."""

    mixes = False

    def linear(self, call: Call, *inputs: Tensor) -> Tensor:
        out: Tensor = call.run(*inputs)
        return out

    def size(self, call: Call, *inputs: Tensor) -> Tensor:
        args, kwargs = call.on(*inputs)
        out: Tensor = call.op(*(v.abs() if isinstance(v, Tensor) else v for v in args), **kwargs)
        return out.abs()


class Quotient(Factor):
    """A perturbed tensor over a constant."""

    def interval(self, call: Call) -> Interval:
        if isinstance(call.args[1], Interval):
            raise call.error("division by a value that depends on the input", "a constant divisor")
        if (torch.as_tensor(call.args[1]) == 0).any():
            raise call.error("division by zero", "a divisor other than zero")
        return super().interval(call)


register(Matrix(), aten.linear.default)
register(Convolution(), aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
register(Convolution(), aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
register(TransposedConvolution(), aten.conv_transpose1d.default, aten.conv_transpose2d.input)
register(TransposedConvolution(), aten.conv_transpose3d.input)
register(BatchNorm(), aten.batch_norm.default)
register(Reshape(), aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.unflatten.int)
register(Reshape(), aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
register(Reshape(), aten.contiguous.default, aten.clone.default, aten.alias.default, aten.to.dtype, aten.detach.default)
register(Monotone(), aten.permute.default, aten.transpose.int, aten.t.default, aten.select.int, aten.slice.Tensor)
register(Monotone(), aten.expand.default, aten.cat.default, aten.stack.default, aten.index_select.default)
register(Monotone(), aten.narrow.default, aten.flip.default, aten.roll.default, aten.repeat.default)
register(Monotone(), aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
register(Monotone(shifts=True), aten.pad.default, aten.constant_pad_nd.default)
register(Sum(), aten.add.Tensor)
register(Monotone(rounds=True, mixes=True), aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default)
register(Difference(), aten.sub.Tensor, aten.rsub.Scalar, aten.rsub.Tensor)
register(Factor(), aten.mul.Tensor, aten.mul.Scalar, aten.neg.default)
register(Quotient(), aten.div.Tensor, aten.div.Scalar)
