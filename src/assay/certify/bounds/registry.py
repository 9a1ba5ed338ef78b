"""From ATen operators to rules: what a rule must do, and how one is registered.

A *form* bounds a tensor by two linear functions of the perturbed inputs; a *coefficient* says how an output depends on
a tensor. Both carry one leading axis (the perturbed elements, or the rows of the specification) before the tensor's own
shape, so that an operator that is linear acts on all of them at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from assay.certify.bounds.interval import Interval
from assay.certify.bounds.windows import Windows
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class Form:
    """lower_slope . e + lower_intercept <= h <= upper_slope . e + upper_intercept, e the k perturbed elements.

    Slopes (k, *shape of h), intercepts (*shape of h).
    """

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in a tensor: along ``axis``, whose positions run sample by sample where ``major``."""

    axis: int = 0
    major: bool = True

    def rows(self, t: Tensor, n: int) -> Tensor:
        """(s, *shape) as (s, n, elements of a sample)."""
        t = t.movedim(self.axis + 1, 1)
        if t.shape[1] == n:
            return t.flatten(2) if t.dim() > 2 else t[:, :, None]
        parts = (n, -1) if self.major else (-1, n)
        t = t.unflatten(1, parts)
        return (t if self.major else t.movedim(2, 1)).flatten(2)

    def back(self, rows: Tensor, shape: torch.Size, n: int) -> Tensor:
        """(s, n, elements of a sample) as (s, *shape): what ``rows`` undoes."""
        rest = [size for k, size in enumerate(shape) if k != self.axis]
        repeats = shape[self.axis] // n
        t = rows.reshape(len(rows), n, repeats, *rest)
        t = (t if self.major else t.movedim(1, 2)).flatten(1, 2)
        return t.movedim(1, self.axis + 1)


@dataclass(frozen=True)
class Call:
    """One operator at one place of the graph, with its arguments.

    ``args`` and ``kwargs`` hold an Interval where an argument depends on what is perturbed, else tensors and plain
    values. ``n`` is the number of samples, ``layout`` where they lie in the output. ``options`` are the user's choices
    of relaxation; ``slope`` (None, or in [0, 1] and broadcastable to (s, *shape)) is what alpha-CROWN optimises.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: str
    n: int = 1
    layout: Layout = Layout()
    options: dict[str, Any] = field(default_factory=dict)
    slope: Tensor | None = None
    kept: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)

    @property
    def inputs(self) -> tuple[Interval, ...]:
        """The perturbed arguments, in order: coefficients and forms are passed in the same order."""
        return tuple(v for v in leaves((self.args, self.kwargs)) if isinstance(v, Interval))

    def once(self, what: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, kept for further backward passes through this call; a changed copy of it starts afresh."""
        if what not in self.kept:
            self.kept[what] = compute()
        return self.kept[what]

    def dot(self, a: Tensor, value: Tensor) -> Tensor:
        """Coefficients (s, *shape of the output) times ``value`` (*shape, or broadcastable), summed to (s, n)."""
        return self.layout.rows(a * value, self.n).sum(2)

    def error(self, problem: str, expected: str) -> InputError:
        """The error for what this operator cannot bound, with its place."""
        return InputError(f"bounds: {problem} at {self.place!r}; expected {expected}")

    def on(self, *inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the perturbed ones replaced by ``inputs``, in order."""
        rest = iter(inputs)
        args, kwargs = replaced((self.args, self.kwargs), lambda v: next(rest) if isinstance(v, Interval) else v)
        return args, kwargs

    def having(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The same operator with other arguments."""
        return replace(self, args=args, kwargs=kwargs)

    def run(self, *inputs: Any) -> Any:
        """The operator itself with the perturbed arguments replaced by ``inputs``."""
        args, kwargs = self.on(*inputs)
        return self.op(*args, **kwargs)


class Rule(ABC):
    """How one operator bounds its output. ``exact``: linear in all perturbed inputs together, so nothing is lost.

    ``widens``: the operator computes, and so rounds (moving values does not). ``mixes``: an output depends on several
    elements of an input.
    """

    exact: bool = False
    mixes: bool = False

    def windowed(self, call: Call, a: Windows) -> tuple[tuple[Windows | Tensor, ...], Tensor | None] | None:
        """As ``backward``, for coefficients in windows of the output's maps; None where the rule needs them whole."""
        return None

    @abstractmethod
    def interval(self, call: Call) -> Interval:
        """The output's interval, without slack for rounding."""

    def rounding(self, call: Call, out: Interval) -> Tensor | None:
        """What SLACK multiplies (>= 0, broadcastable to the output); None for operators that round nothing."""
        return out.magnitude

    @abstractmethod
    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """From a lower bound a . out + ... to one on the inputs, whatever the signs in ``a`` (s, *shape of the output).

        Gives a coefficient (s, *shape) for each perturbed input and the constant (s, n), None for zero:
        a . out >= sum_i a_i . input_i + constant for all inputs in their intervals.
        """

    @abstractmethod
    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        """The output's form from those of the perturbed inputs."""

    def needed(self, call: Call) -> tuple[Tensor, ...] | None:
        """For each perturbed input the elements (bool) whose bounds the relaxation uses; None: all of them."""
        return None


RULES: dict[tuple[Callable[..., Any], int | tuple[int, ...] | None], Rule] = {}


def register(rule: Rule, *operators: Callable[..., Any], inputs: int | tuple[int, ...] | None = None) -> None:
    """Let ``rule`` bound these operators, such as ``torch.ops.aten.relu.default``.

    ``inputs``: only where that many arguments are perturbed (a product of two activations: 2), or those at these
    positions (a constant over an activation: (1,)); None: otherwise. InputError where there is such a rule already.
    """
    for operator in operators:
        if (operator, inputs) in RULES:
            raise InputError(f"bounds: {operator} with inputs {inputs} has a rule; expected an operator without one")
        RULES[operator, inputs] = rule


def rule_of(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    """The rule for an operator with these arguments, by which of them are perturbed; None where there is none."""
    count = sum(isinstance(v, Interval) for v in leaves((args, kwargs)))
    places = tuple(k for k, v in enumerate(args) if isinstance(v, Interval))
    return RULES.get((op, places), RULES.get((op, count), RULES.get((op, None))))


def leaves(value: Any) -> Iterator[Any]:
    """The values in nested tuples, lists and dicts, in order."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for v in value:
            yield from leaves(v)
    else:
        yield value


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with each leaf replaced by ``change(leaf)``."""
    if isinstance(value, dict):
        return {k: replaced(v, change) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(replaced(v, change) for v in value)
    return change(value)


def positive(t: Tensor) -> Tensor:
    """max(t, 0)."""
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    """min(t, 0)."""
    return t.clamp(max=0)
