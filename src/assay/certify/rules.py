"""How each operator maps an interval to an interval: one small function each, all in float64.

A float32 network rounds at each operator; every rule that computes widens its result by ``SLACK`` of the magnitudes
that enter it, which covers the rounding of both the network and the rule.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.runtime.errors import InputError

SLACK = 1e-6


@dataclass(frozen=True)
class Interval:
    """lower <= upper, elementwise, float64."""

    lower: Tensor
    upper: Tensor

    @property
    def center(self) -> Tensor:
        """The midpoint."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value inside."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def widen(self, by: Tensor | float) -> Interval:
        """The interval with ``by`` added at both ends."""
        return Interval(self.lower - by, self.upper + by)


Rule = Callable[..., Interval]


def affine(x: Interval, weight: Tensor, bias: Tensor | None, apply: Callable[[Tensor, Tensor], Tensor]) -> Interval:
    """W x + b: center W c + b, radius |W| r (Gowal et al., 2018, arXiv:1810.12715, eq. 6); ``apply(x, W)`` is W x."""
    weight = weight.double()
    middle = apply(x.center, weight)
    radius = apply(x.radius + SLACK * x.magnitude, weight.abs())
    if bias is not None:
        shift = bias.double().reshape(-1, *[1] * (middle.dim() - 2))  # (c,) or (c, 1, 1): beside the batch axis
        middle, radius = middle + shift, radius + SLACK * shift.abs()
    return Interval(middle - radius, middle + radius)


def linear(m: nn.Linear, x: Interval) -> Interval:
    """Matrix product on the last axis."""
    if x.lower.dim() != 2:
        raise InputError(f"interval bounds: Linear on shape {tuple(x.lower.shape)}; expected (n, d): flatten before it")
    return affine(x, m.weight, m.bias, F.linear)


def conv(m: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Interval) -> Interval:
    """Convolution with zero padding."""
    if m.padding_mode != "zeros":
        raise InputError(f"interval bounds: convolution with padding {m.padding_mode!r}; expected zeros")
    f = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[m.weight.dim() - 2]
    return affine(x, m.weight, m.bias, lambda t, w: f(t, w, None, m.stride, m.padding, m.dilation, m.groups))


def batch_norm(m: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Interval) -> Interval:
    """In evaluation mode: a scale and a shift for each channel."""
    if m.running_mean is None or m.running_var is None:
        raise InputError("interval bounds: batch norm without running statistics; expected track_running_stats=True")
    mean, scale = m.running_mean.double(), (m.running_var.double() + m.eps).rsqrt()
    shift = torch.zeros_like(mean)
    if m.affine:
        scale, shift = scale * m.weight.double(), m.bias.double()
    mean, scale, shift = (t.reshape(-1, *[1] * (x.lower.dim() - 2)) for t in (mean, scale, shift))
    middle = (x.center - mean) * scale + shift
    radius = scale.abs() * (x.radius + SLACK * (x.magnitude + mean.abs())) + SLACK * shift.abs()
    return Interval(middle - radius, middle + radius)


def moved(f: Callable[..., Tensor]) -> Rule:
    """Increasing and exact: ReLU, max pooling, reshaping, identity."""
    return lambda x, *args, **kwargs: Interval(f(x.lower, *args, **kwargs), f(x.upper, *args, **kwargs))


def curved(f: Callable[..., Tensor]) -> Rule:
    """Increasing with rounding: sigmoid, tanh, softplus ..."""

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        out = moved(f)(x, *args, **kwargs)
        return out.widen(SLACK * out.magnitude)

    return rule


def averaged(f: Callable[..., Tensor]) -> Rule:
    """Linear with weights >= 0: average pooling, mean, sum. Rounding scales with the averaged magnitude."""
    return lambda x, *args, **kwargs: moved(f)(x, *args, **kwargs).widen(SLACK * f(x.magnitude, *args, **kwargs))


def module(rule: Callable[[Callable[..., Tensor]], Rule]) -> Rule:
    """The rule for a parameter-free module: the module itself is the function."""
    return lambda m, x: rule(m)(x)


def leaky_relu(m: nn.LeakyReLU, x: Interval) -> Interval:
    """Increasing for a slope >= 0."""
    if m.negative_slope < 0:
        raise InputError(f"interval bounds: LeakyReLU with slope {m.negative_slope}; expected a slope >= 0")
    return curved(m)(x)


def add(a: Interval | Any, b: Interval | Any) -> Interval:
    """Sum of two intervals (a residual branch), or of an interval and a constant."""
    a, b = _interval(a), _interval(b)
    return Interval(a.lower + b.lower, a.upper + b.upper).widen(SLACK * (a.magnitude + b.magnitude))


def dropout(x: Interval, p: float = 0.5, training: bool = True, inplace: bool = False) -> Interval:
    """The identity in evaluation mode."""
    if training:
        raise InputError("interval bounds: dropout that stays on in evaluation mode; expected training=self.training")
    return x


def negative(a: Interval) -> Interval:
    """-a."""
    return Interval(-a.upper, -a.lower)


def subtract(a: Interval | Any, b: Interval | Any) -> Interval:
    """a - b."""
    return add(a, negative(_interval(b)))


def multiply(a: Interval | Any, b: Interval | Any) -> Interval:
    """A constant times an interval, or two intervals: the extremes lie at the four corners."""
    a, b = _interval(a), _interval(b)
    corners = torch.stack(torch.broadcast_tensors(*(s * t for s in (a.lower, a.upper) for t in (b.lower, b.upper))))
    return Interval(corners.amin(0), corners.amax(0)).widen(SLACK * a.magnitude * b.magnitude)


def divide(a: Interval | Any, b: Any) -> Interval:
    """An interval by a constant other than zero."""
    if isinstance(b, Interval):
        raise InputError("interval bounds: division by a value that depends on the input; expected a constant")
    constant = torch.as_tensor(b, dtype=torch.float64)
    if (constant == 0).any():
        raise InputError("interval bounds: division by zero; expected a constant other than zero")
    return multiply(a, 1 / constant)


def concatenate(parts: list[Interval] | tuple[Interval, ...], dim: int = 0) -> Interval:
    """torch.cat."""
    kept = [_interval(p) for p in parts]
    return Interval(torch.cat([p.lower for p in kept], dim), torch.cat([p.upper for p in kept], dim))


def _interval(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    point = torch.as_tensor(value, dtype=torch.float64)
    return Interval(point, point)


_EXACT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity, nn.Flatten, nn.Unflatten)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_CURVES = (nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU)

MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), batch_norm),
    nn.LeakyReLU: leaky_relu,
    **dict.fromkeys((*_EXACT, *_POOLS, *_DROPS), module(moved)),
    **dict.fromkeys(_MEANS, module(averaged)),
    **dict.fromkeys(_CURVES, module(curved)),
}

_MOVES = (F.relu, torch.relu, torch.flatten, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.squeeze)
_POOLED = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean)

FUNCTIONS: dict[Callable[..., Any], Rule] = {
    **{f: moved(f) for f in _MOVES},
    **{f: averaged(f) for f in _POOLED},
    **{f: curved(f) for f in (torch.sigmoid, torch.tanh, F.softplus)},
    **dict.fromkeys((operator.add, torch.add), add),
    F.dropout: dropout,
    operator.getitem: moved(operator.getitem),
    **dict.fromkeys((operator.sub, torch.sub), subtract),
    **dict.fromkeys((operator.mul, torch.mul), multiply),
    **dict.fromkeys((operator.truediv, torch.div), divide),
    operator.neg: negative,
    torch.cat: concatenate,
}


def _method(name: str) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


_SHAPING = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "relu")

METHODS: dict[str, Rule] = {
    **{name: moved(_method(name)) for name in _SHAPING},
    **{name: averaged(_method(name)) for name in ("mean", "sum")},
    **{name: curved(_method(name)) for name in ("sigmoid", "tanh")},
    **{"add": add, "sub": subtract, "mul": multiply, "div": divide},
}


def is_positive(value: Any) -> bool:
    """Whether a constant is one positive finite number."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and 0 < float(value) < math.inf
    return isinstance(value, int | float) and 0 < value < math.inf
