"""A model as a graph of ATen operators, by ``torch.export``."""

from __future__ import annotations

import operator
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from assay.certify.bounds.decompositions import DECOMPOSITIONS
from assay.certify.bounds.registry import Layout
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Graph:
    """The operators between the input and the output, in order.

    ``names`` maps placeholders to dotted names of parameters and buffers; ``constants`` are tensors that belong to no
    module; ``layouts`` say where the samples lie in each tensor that depends on the input; ``n`` is the only batch size
    that the graph takes (None: any).
    """

    nodes: tuple[fx.Node, ...]
    input: fx.Node
    output: fx.Node
    names: Mapping[fx.Node, str]
    constants: Mapping[fx.Node, Tensor]
    layouts: Mapping[fx.Node, Layout]
    n: int | None

    def state(self, model: nn.Module, dtype: torch.dtype | None = None) -> dict[fx.Node, Tensor]:
        """The values of the placeholders other than the input, as the model holds them now."""
        found = {node: operator.attrgetter(name)(model) for node, name in self.names.items()}
        device = device_of(model)
        return {k: cast(v.to(device), dtype) for k, v in (*found.items(), *self.constants.items())}


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A floating tensor in ``dtype``, anything else as it is."""
    if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def place_of(node: fx.Node) -> str:
    """The dotted name of the module that runs an operator, or the operator's own name at the top of the model."""
    stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return stack[-1] if stack and stack[-1] else node.name


def owner_of(node: fx.Node) -> str:
    """The class of the module that runs an operator, where it is one of torch.nn's layers; else the operator."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][1]) if stack else ""
    return name.rsplit(".", 1)[-1] if name.startswith("torch.nn.modules.") else str(node.target)


def operation(node: fx.Node) -> Callable[..., Any]:
    """What a node calls."""
    assert callable(node.target)
    return node.target


PLAIN = (bool, int, float, str)
KEPT = 16  # graphs of one model
_kept: weakref.WeakKeyDictionary[nn.Module, dict[Any, Graph]] = weakref.WeakKeyDictionary()


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    """The graph of ``model`` for inputs shaped as ``x`` (n, ...), kept for each of the last few states of the model.

    A state is what its modules are, their modes and the plain values that they hold (a slope, a temperature); what else
    the graph has fixed (a tensor that is no buffer, a function) is seen after ``forget`` alone. Raises InputError where
    the model cannot be exported or mixes samples.
    """
    kept = _kept.setdefault(model, {})
    state = tuple((name, type(m), *_plain(m)) for name, m in model.named_modules())
    key = (x.shape[1:], x.dtype, x.device, state)
    for found in (kept.get(key), kept.get((key, len(x)))):
        if found is not None:
            return found
    graph = _export(model, x)
    kept[key if graph.n is None else (key, len(x))] = graph
    for old in list(kept)[:-KEPT]:
        del kept[old]
    return graph


def _plain(module: nn.Module) -> list[tuple[str, str]]:
    """The plain values among a module's attributes, and tuples of such; its mode is one of them."""
    items = {k: v if isinstance(v, tuple) else (v,) for k, v in vars(module).items()}
    return [(k, repr(v)) for k, v in items.items() if all(e is None or isinstance(e, PLAIN) for e in v)]


def forget(model: nn.Module) -> None:
    """Drop what is kept of a model."""
    _kept.pop(model, None)


def _export(model: nn.Module, x: Tensor) -> Graph:
    many = x.detach() if len(x) > 1 else torch.cat((x, x)).detach()  # one sample alone would fix the batch size
    program = _exported(model, many[:2])
    source = next(node for node in program.graph.nodes if node.name == program.graph_signature.user_inputs[0])
    fixed = isinstance(source.meta["val"].shape[0], int)
    if fixed:
        program = _exported(model, x.detach())
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {placeholders[k]: v for k, v in held.items()}
    lifted = {placeholders[k]: program.constants[v] for k, v in signature.inputs_to_lifted_tensor_constants.items()}
    source = placeholders[signature.user_inputs[0]]
    outputs = signature.user_outputs
    if len(outputs) != 1 or outputs[0] is None:
        raise InputError(f"bounds: {type(model).__name__} gives {len(outputs)} outputs; expected one tensor")
    output = next(node for node in program.graph.nodes if node.name == outputs[0])
    nodes = _between(program.graph, output)
    n = len(x) if fixed else None
    graph = Graph(nodes, source, output, names, lifted, {}, n)
    probe = x.detach() if fixed else many[:2]
    return Graph(nodes, source, output, names, lifted, _layouts(model, graph, probe), n)


def _exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.AUTO},) if len(x) > 1 else None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from inside the exporter
            program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
            if any(_updates(node) or node.target in DECOMPOSITIONS for node in program.graph.nodes):
                program = program.run_decompositions(DECOMPOSITIONS)
    except Exception as error:  # exporting runs the model's own code on stand-ins, which may raise anything
        detail = " ".join(str(error).split())[:160]
        raise InputError(
            f"bounds: {type(model).__name__} cannot be exported ({detail}); expected a fixed feed-forward graph"
        ) from error
    return program


def _updates(node: fx.Node) -> bool:
    """Whether an operator writes into a tensor other than a counter of batches."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return False
    return not (isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder")


def _between(graph: fx.Graph, output: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that the output depends on, in order, and the output."""
    wanted = before(output) | {output}
    return tuple(node for node in graph.nodes if node in wanted)


class Tail(nn.Module):
    """The part of a model that computes the output from the tensor at ``cut``, by the graph; parameters are shared.

    Raises InputError where the input reaches the output by another way, or the graph takes one batch size only.
    """

    def __init__(self, graph: Graph, model: nn.Module, cut: fx.Node) -> None:
        super().__init__()
        self.model, self.cut, self.sizes = model, cut, set[fx.Node]()
        wanted, stack = {cut}, [graph.output]
        while stack:
            node = stack.pop()
            if node in wanted:
                continue
            if node is graph.input or graph.n is not None or graph.layouts.get(cut) != Layout():
                raise InputError(f"bounds: {place_of(cut)!r} splits no model in two; expected a layer all paths take")
            if node.target is aten.sym_size.int:
                self.sizes.add(node)
            else:
                wanted.add(node)
                stack.extend(node.all_input_nodes)
        self.graph = replace(graph, nodes=tuple(n for n in graph.nodes if n in wanted and n is not cut))

    def forward(self, h: Tensor) -> Tensor:
        """The outputs for tensors h (n, ...) at the cut."""
        env: dict[fx.Node, Any] = {**self.graph.state(self.model), **dict.fromkeys(self.sizes, len(h)), self.cut: h}
        out: Tensor = evaluate(self.graph, env, lambda node, args, kwargs: operation(node)(*args, **kwargs))[
            self.graph.output
        ]
        return out


def before(node: fx.Node) -> set[fx.Node]:
    """The nodes that ``node`` depends on."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        fresh = set(stack.pop().all_input_nodes) - found
        found |= fresh
        stack.extend(fresh)
    return found


def evaluate(graph: Graph, env: dict[fx.Node, Any], step: Callable[[fx.Node, Any, Any], Any]) -> dict[fx.Node, Any]:
    """Fill in every node's value: ``env`` holds the placeholders', ``step(node, args, kwargs)`` gives the others."""
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = step(node, args, kwargs)
        elif node not in env:
            raise InputError(f"bounds: the graph needs {node.name!r}; expected a model of one input")
    return env


def _layouts(model: nn.Module, graph: Graph, x: Tensor) -> dict[fx.Node, Layout]:
    """Where the samples lie: a first sample of NaN leaves its trace in every element that belongs to it."""
    marked = x.clone()
    marked[0] = torch.nan

    def step(node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.target is aten.batch_norm.default and args[5]:
            return args[0]  # statistics of the batch would mix the samples
        return operation(node)(*args, **kwargs)

    with torch.no_grad():
        values = evaluate(graph, {**graph.state(model), graph.input: marked}, step)
    found = {}
    for node, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            layout = _layout(value.isnan(), len(x))
            if layout is not None:
                found[node] = layout
    if graph.output not in found:
        raise InputError(f"bounds: the output of {type(model).__name__} ignores its input, or mixes samples")
    return found


def _layout(mask: Tensor, n: int) -> Layout | None:
    """The axis along which the marked elements change, None where there is none."""
    if not mask.any():
        return None
    for axis in range(mask.dim()):
        row = mask.movedim(axis, 0).flatten(1).any(1) if mask.dim() > 1 else mask
        if len(row) % n:
            continue
        size = len(row) // n
        for major in (True, False):
            first = torch.arange(len(row), device=row.device).div(size if major else 1, rounding_mode="floor")
            if torch.equal(row, first % n == 0) and n > 1:
                return Layout(axis, major)
    return Layout() if n == 1 else None
