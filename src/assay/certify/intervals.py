"""Interval bound propagation on a traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from assay.certify.base import Bounder, Region
from assay.certify.rules import FUNCTIONS, METHODS, MODULES, Interval, is_positive
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating


def trace(model: nn.Module) -> fx.Graph:
    """The model's operators in order, torch.nn layers as leaves. InputError where control flow depends on the input."""
    try:
        return fx.Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code on proxies, which may raise anything
        detail = " ".join(str(error).split())[:160]
        raise InputError(
            f"interval bounds: {type(model).__name__} cannot be traced ({detail}); expected a fixed feed-forward graph"
        ) from error


def checked_trace(model: nn.Module, x: Tensor) -> fx.Graph:
    """The graph, once it agrees with the model on two samples: hooks and in-place updates escape tracing."""
    graph, few = trace(model), x[:2].to(device_of(model))
    out, real = propagate(model, graph, Interval(few.double(), few.double())), model(few).double()
    slack = 1e-5 * (1 + out.magnitude)
    if out.lower.shape != real.shape or not ((out.lower - slack <= real) & (real <= out.upper + slack)).all():
        raise InputError(
            f"interval bounds: the traced graph of {type(model).__name__} disagrees with the model; "
            "expected no in-place updates and no hooks that change outputs"
        )
    return graph


def propagate(model: nn.Module, graph: fx.Graph, box: Interval, stop: fx.Node | None = None) -> Interval:
    """The interval of the graph's output, or of node ``stop``, for inputs in ``box``."""
    values: dict[fx.Node, Any] = {}
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs += 1
            if inputs > 1 and not node.args:
                raise InputError(f"interval bounds: the model takes a second input {node.name!r}; expected one")
            values[node] = box if inputs == 1 else node.args[0]
        elif node.op == "get_attr":
            values[node] = attribute(model, str(node.target))
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], lambda n: values[n])
            if not isinstance(result, Interval):
                raise InputError(f"interval bounds: the model gives {type(result).__name__}; expected one tensor")
            return result
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = _step(model, node, args, kwargs)
        if stop is not None and node is stop:
            found: Interval = values[stop]
            return found
    raise InputError("interval bounds: the graph has no output; expected a model that returns its logits")


def attribute(model: nn.Module, target: str) -> Any:
    """The parameter, buffer or constant at a dotted name."""
    return operator.attrgetter(target)(model)


def _step(model: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One operator; those that touch no interval, or only its shape, are run as they are."""
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        rule = MODULES.get(type(layer))
        if rule is None:
            raise _unknown(type(layer).__name__, str(node.target))
        return rule(layer, *args, **kwargs)
    touched = any(isinstance(v, Interval) for v in _leaves((args, kwargs)))
    if node.op == "call_method":
        name = str(node.target)
        if not touched or name in ("size", "dim"):
            return getattr(_shaped(args[0]), name)(*args[1:], **kwargs)
        known: Any = METHODS.get(name)
    else:
        name = getattr(node.target, "__name__", str(node.target))
        if not touched or (node.target is getattr and args[1] in ("shape", "ndim", "dtype", "device")):
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            return function(*(_shaped(a) for a in args), **kwargs)
        known = FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    if known is None:
        raise _unknown(name, node.name)
    return known(*args, **kwargs)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, tuple | list) else [value]


def _shaped(value: Any) -> Any:
    """A tensor of the interval's shape, for operators that ask only about that."""
    return value.lower if isinstance(value, Interval) else value


def _unknown(operation: str, place: str) -> InputError:
    known = ", ".join(sorted({t.__name__ for t in MODULES}))
    return InputError(f"interval bounds: no rule for {operation} at {place!r}; expected one of {known}, or +, -, *, /")


def last_linear(model: nn.Module, graph: fx.Graph) -> tuple[fx.Node, nn.Linear] | None:
    """The Linear layer that makes the logits, and the node that feeds it, looking through a division by a temperature.

    A positive factor common to all logits changes no decision, so margins may be taken before it.
    """
    node: Any = next(n for n in graph.nodes if n.op == "output").args[0]
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target not in (operator.truediv, operator.mul, torch.div, torch.mul) or node.kwargs:
            return None
        factor = node.args[1]
        if isinstance(factor, fx.Node):
            factor = attribute(model, str(factor.target)) if factor.op == "get_attr" else None
        if not is_positive(factor):
            return None
        node = node.args[0]
    if isinstance(node, fx.Node) and node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        if type(layer) is nn.Linear and isinstance(node.args[0], fx.Node):
            return node.args[0], layer
    return None


@dataclass(frozen=True, kw_only=True)
class Intervals(Bounder):
    """Interval bound propagation (Gowal et al., 2018, arXiv:1810.12715, section 3, eq. 6).

    Feed-forward networks of linear layers, convolutions, batch norm in evaluation mode, increasing activations,
    pooling, residual sums and constant factors; another operator raises InputError with its name and place. Exact on
    linear models under linf up to the outward slack of 1e-6 (relative, at each operator) that covers float32 rounding.
    An l2 region is replaced by the box around it.
    """

    batch_size: int = BATCH

    def bounds(
        self, model: nn.Module, x: Float[Tensor, "n ..."], region: Region
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        check_inputs("Intervals", x, bounds=region.bounds)
        parts = []
        with evaluating(model), torch.no_grad():
            graph, device = checked_trace(model, x), device_of(model)
            for start in range(0, len(x), self.batch_size):
                box = Interval(*region.box(x[start : start + self.batch_size].to(device)))
                out = propagate(model, graph, box)
                parts.append((out.lower.cpu(), out.upper.cpu()))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
