"""Bounds through a graph: one sweep of intervals, and linear forms forward or backward."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from assay.certify.bounds.affine import BatchNorm, Convolution, Sum
from assay.certify.bounds.graph import Graph, cast, evaluate, operation, owner_of, place_of
from assay.certify.bounds.interval import Interval
from assay.certify.bounds.perturbation import Perturbation
from assay.certify.bounds.registry import Call, Form, Layout, Rule, leaves, rule_of
from assay.certify.bounds.windows import Windows
from assay.runtime.errors import InputError

aten = torch.ops.aten
SHAPES = {  # what these give depends on the shape of a perturbed tensor alone
    aten.sym_size.int,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}
REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}  # tensors need not be laid out as the model's are
LOCAL = Convolution, BatchNorm, Sum  # one entry of what these give stays in a window on the way back
BUDGET = 2**21  # coefficients held at once in a backward pass: more is no faster on a CPU
Slopes = dict[tuple[fx.Node, fx.Node], Tensor]
Refine = Literal["backward", "forward"] | None


@dataclass
class Sweep:
    """Bounds on every tensor of a graph for one batch of n samples; see ``sweep``.

    roots: what is perturbed, with the set and its centre (n, ...); values: an Interval or a constant for each node;
    calls and sources: the rule of each operator that something perturbed enters, and its perturbed inputs; noise: what
    rounding may add to each output; forms: linear bounds, where they were asked for; slopes: for a backward pass from
    the first node those below the second (2 or as many as rows, n, ...), where they are not the rule's own choice.
    """

    graph: Graph
    roots: dict[fx.Node, tuple[Perturbation, Tensor]]
    n: int
    slack: float
    refine: Refine
    options: dict[str, Any]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    calls: dict[fx.Node, tuple[Rule, Call]] = field(default_factory=dict)
    sources: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    noise: dict[fx.Node, Tensor] = field(default_factory=dict)
    forms: dict[fx.Node, Form] = field(default_factory=dict)
    settled: set[fx.Node] = field(default_factory=set)
    refined: set[fx.Node] = field(default_factory=set)
    statistics: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    slopes: Slopes = field(default_factory=dict)

    def layout(self, node: fx.Node) -> Layout:
        """Where the samples lie in a node's tensor."""
        return self.graph.layouts.get(node, Layout())

    @property
    def dtype(self) -> torch.dtype:
        """The precision that everything is computed in."""
        return next(iter(self.roots.values()))[1].dtype


def sweep(
    graph: Graph,
    model: nn.Module,
    x: Tensor,
    perturbation: Perturbation | None,
    *,
    weights: Mapping[str, Perturbation] | None = None,
    refine: Refine = None,
    slack: float = 0.0,
    options: Mapping[str, Any] | None = None,
    slopes: Slopes | None = None,
) -> Sweep:
    """Intervals of every tensor, for inputs in ``perturbation`` (None: exact) around x (n, ...), in x's precision.

    ``weights``: sets around parameters by their dotted name. ``refine``: the inputs of operators that are not linear
    get bounds from a backward pass of their own (CROWN), or from linear forms carried along, cut with the intervals.
    ``slack`` times the magnitudes that enter an operator is added to its output's bounds (SLACK: what float32 may
    round).
    """
    run = Sweep(graph, {}, len(x), slack, refine, dict(options or {}), slopes=slopes or {})
    run.values = {**graph.state(model, x.dtype), graph.input: x}
    if perturbation is not None:
        run.roots[graph.input] = (perturbation, x)
    if run.options.get("batch_norm") == "batch":
        run.statistics = _statistics(graph, run.values)
    run.roots.update(_weights(graph, run.values, weights or {}, len(x)))
    for node, (around, centre) in run.roots.items():
        run.values[node] = around.around(centre)
        run.settled.add(node)
        if refine == "forward":
            run.forms[node] = _identity(run, node)
    evaluate(graph, run.values, lambda node, args, kwargs: _step(run, node, args, kwargs))
    return run


def _statistics(graph: Graph, values: Mapping[fx.Node, Any]) -> dict[fx.Node, tuple[Tensor, Tensor]]:
    """Mean and variance of the unperturbed batch where batch norm is in training mode."""
    clean = dict(values)

    def step(node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.target is aten.batch_norm.default:
            args = (*args[:3], *((None, None) if args[5] else args[3:5]), *args[5:])  # nothing is written
        return operation(node)(*args, **kwargs)

    evaluate(graph, clean, step)
    found = {}
    for node in graph.nodes:
        if node.target is aten.batch_norm.default and node.args[5]:
            x = clean[node.args[0]].movedim(1, 0).flatten(1)  # type: ignore[index]
            found[node] = (x.mean(1), x.var(1, correction=0))
    return found


def _weights(
    graph: Graph, values: Mapping[fx.Node, Any], weights: Mapping[str, Perturbation], n: int
) -> dict[fx.Node, tuple[Perturbation, Tensor]]:
    """The perturbed parameters, each repeated (without copying) for every sample: (n, *shape)."""
    nodes = {name: node for node, name in graph.names.items()}
    unknown = sorted(set(weights) - set(nodes))
    if unknown:
        raise InputError(f"bounds: {unknown[0]!r} is no parameter that the model uses; expected one of {sorted(nodes)}")
    return {nodes[k]: (p, values[nodes[k]].expand(n, *values[nodes[k]].shape)) for k, p in weights.items()}


@dataclass(frozen=True)
class Several:
    """The outputs of an operator with several, until one of them is picked."""

    node: fx.Node


def _step(run: Sweep, node: fx.Node, args: Any, kwargs: Any) -> Any:
    maker, op = node, operation(node)
    if op is operator.getitem and isinstance(args[0], Several):
        maker, pick = args[0].node, args[1]
        op = _picked(operation(maker), pick)
        args, kwargs = fx.node.map_arg((maker.args, maker.kwargs), run.values.__getitem__)
    touched = [v for v in leaves((args, kwargs)) if isinstance(v, Interval)]
    if not touched or op in SHAPES:
        shaped = [v.lower if isinstance(v, Interval) else v for v in args]
        return cast(op(*shaped, **kwargs), run.dtype)
    rule = rule_of(operation(maker), args, kwargs)
    if rule is None:
        raise InputError(f"bounds: no rule for {owner_of(node)} at {place_of(node)!r}; expected an operator with one")
    if maker is node and _several(op):
        return Several(node)
    return _bound(run, node, maker, rule, REPLACED.get(op, op))


def _bound(run: Sweep, node: fx.Node, maker: fx.Node, rule: Rule, op: Any) -> Interval:
    """The interval of an operator that ``maker`` describes, kept with all that a backward pass needs."""
    sources = tuple(v for v in leaves((maker.args, maker.kwargs)) if isinstance(run.values.get(v), Interval))
    args, kwargs = fx.node.map_arg((maker.args, maker.kwargs), run.values.__getitem__)
    if maker in run.statistics:
        args = (*args[:3], *run.statistics[maker], False, *args[6:])
    call = Call(op, tuple(args), kwargs, place_of(maker), run.n, run.layout(node), run.options)
    if run.refine == "backward" and not rule.exact and _refine(run, rule, call, sources):
        fresh = fx.node.map_arg((maker.args, maker.kwargs), run.values.__getitem__)
        call = call.having(tuple(fresh[0]), fresh[1])
    out = rule.interval(call)
    noise = rule.rounding(call, out) if run.slack else None
    if noise is not None:
        run.noise[node] = noise = run.slack * noise
        out = out.widen(noise)
    run.calls[node], run.sources[node] = (rule, call), sources
    if run.refine == "forward":
        form = rule.forward(call, tuple(run.forms[s] for s in sources))
        if noise is not None:
            form = Form(form.lower_slope, form.lower_intercept - noise, form.upper_slope, form.upper_intercept + noise)
        run.forms[node] = form
        out = _concrete(run, node, form).within(out)
    return out


def _several(op: Any) -> bool:
    """Whether an operator gives more than one tensor."""
    returns = op._schema.returns if hasattr(op, "_schema") else ()
    return len(returns) > 1 or any("List" in type(r.type).__name__ for r in returns)


def _picked(op: Any, pick: int) -> Any:
    """The operator with one of its outputs."""
    return lambda *args, **kwargs: op(*args, **kwargs)[pick]


def _identity(run: Sweep, node: fx.Node) -> Form:
    """A root as a form of itself: slopes (elements, n, ...)."""
    if len(run.roots) > 1:
        raise InputError("bounds: forward mode with several perturbed tensors; expected the input alone")
    x = run.roots[node][1]
    size = x[0].numel()
    eye = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
    return Form(eye, torch.zeros_like(x), eye, torch.zeros_like(x))


def _concrete(run: Sweep, node: fx.Node, form: Form) -> Interval:
    """The least and the largest value of a form over the root's set."""
    ((around, x),) = run.roots.values()
    shape, layout = form.lower_intercept.shape, run.layout(node)
    ends = []
    for slope, sign in ((form.lower_slope, 1), (form.upper_slope, -1)):
        rows = layout.rows(sign * slope, run.n)  # (elements, n, m)
        least = around.least(rows.permute(2, 1, 0).reshape(-1, *x.shape), x)  # (m, n)
        ends.append(sign * layout.back(least.T[None], shape, run.n)[0])
    return Interval(ends[0] + form.lower_intercept, ends[1] + form.upper_intercept)


def _refine(run: Sweep, rule: Rule, call: Call, sources: tuple[fx.Node, ...]) -> bool:
    """Better bounds for the inputs of an operator, where its relaxation uses them; whether there are any."""
    wanted, changed = rule.needed(call), False
    for k, source in enumerate(sources):
        if source in run.settled or is_exact(run, source):
            continue
        now = run.values[source]
        mask = wanted[k] if wanted is not None else torch.ones_like(now.lower, dtype=torch.bool)
        found = selected(run, source, mask)
        if found is not None:
            run.values[source], changed = found.within(now), True
            run.refined.add(source)
        run.settled.add(source)
    return changed


def is_exact(run: Sweep, node: fx.Node) -> bool:
    """Whether the interval cannot be better: one linear operator after moves of a box."""
    mixed = False
    while node in run.calls:
        rule, _ = run.calls[node]
        if not rule.exact or len(run.sources[node]) != 1 or (mixed and rule.mixes):
            return False
        mixed, node = mixed or rule.mixes, run.sources[node][0]
    return run.roots[node][0].independent


def selected(run: Sweep, node: fx.Node, mask: Tensor) -> Interval | None:
    """The interval of ``node`` with the elements of ``mask`` (bool, its shape) bounded backward; None if it is empty.

    Each sample's own elements only, in chunks that hold at most BUDGET coefficients.
    """
    if not mask.any():
        return None
    value, layout = run.values[node], run.layout(node)
    index = layout.rows(torch.arange(mask.numel(), device=mask.device).reshape(1, *mask.shape), run.n)[0]
    chosen = layout.rows(mask[None], run.n)[0]
    count = int(chosen.sum(1).max())
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    where = index.gather(1, order)  # (n, count) positions in the flat tensor, each sample's chosen ones first
    lower, upper = value.lower.flatten(), value.upper.flatten()
    for part in where.split(rows_at_once(run), dim=1):
        rows = part.T  # (s, n)
        low = backward(run, node, _both_signs(run, node, rows))
        lower = lower.scatter(0, rows.flatten(), low[: len(rows)].flatten())
        upper = upper.scatter(0, rows.flatten(), -low[len(rows) :].flatten())
    lower, upper = lower.reshape(mask.shape), upper.reshape(mask.shape)
    return Interval(torch.where(mask, lower, value.lower), torch.where(mask, upper, value.upper))


def _both_signs(run: Sweep, node: fx.Node, rows: Tensor) -> Tensor | Windows:
    """Ones and minus ones at flat positions ``rows`` (s, n) of a node's tensor: (2 s, *shape), in windows of maps."""
    shape = run.values[node].lower.shape
    if len(shape) == 4 and run.layout(node) == Layout() and isinstance(run.calls[node][0], LOCAL):
        one = Windows.one_hot(shape, rows % math.prod(shape[1:]), run.dtype)
        return one.joined(-one)
    a = torch.zeros((len(rows), math.prod(shape)), dtype=run.dtype, device=rows.device).scatter_(1, rows, 1.0)
    return torch.cat((a, -a)).reshape(-1, *shape)


def rows_at_once(run: Sweep) -> int:
    """How many elements one backward pass bounds from both sides, so that the largest tensor fits in BUDGET."""
    widest = max(v.lower.numel() for v in run.values.values() if isinstance(v, Interval))
    return max(1, BUDGET // (2 * widest))


def backward(run: Sweep, node: fx.Node, a: Tensor | Windows, *, elide: bool = False) -> Tensor:
    """Lower bounds (s, n) of a . node, for coefficients a (s, *shape of node).

    ``elide``: only through the linear operators at the end, then over the forms or intervals of what enters them.
    """
    found, constant = coefficients(run, node, a, elide=elide)
    for source, part in found.items():
        if isinstance(part, Windows):
            box = run.values[source]
            up, down = part.having(part.values.clamp(min=0)), part.having(part.values.clamp(max=0))
            constant = constant + up.dot(box.lower) + down.dot(box.upper)
        elif source in run.roots:
            around, x = run.roots[source]
            constant = constant + around.least(part, x)
        elif source in run.forms:
            constant = constant + _through_form(run, source, part)
        else:
            box, layout = run.values[source], run.layout(source)
            least = part.clamp(min=0) * box.lower + part.clamp(max=0) * box.upper
            constant = constant + layout.rows(least, run.n).sum(2)
    return constant


def _through_form(run: Sweep, node: fx.Node, a: Tensor) -> Tensor:
    """Lower bounds (s, n) of a . node from the form of node."""
    ((around, x),) = run.roots.values()
    form, layout = run.forms[node], run.layout(node)
    rows = layout.rows(a, run.n)  # (s, n, m)
    up, down = rows.clamp(min=0), rows.clamp(max=0)
    low, high = layout.rows(form.lower_slope, run.n), layout.rows(form.upper_slope, run.n)
    slope = torch.einsum("snm,knm->snk", up, low) + torch.einsum("snm,knm->snk", down, high)
    constant = (up * layout.rows(form.lower_intercept[None], run.n)).sum(2)
    constant = constant + (down * layout.rows(form.upper_intercept[None], run.n)).sum(2)
    return around.least(slope.reshape(*slope.shape[:2], *x.shape[1:]), x) + constant


def coefficients(
    run: Sweep, node: fx.Node, a: Tensor | Windows, *, elide: bool = False
) -> tuple[dict[fx.Node, Tensor | Windows], Tensor]:
    """The linear lower bound of a . node on the roots: coefficients (s, *shape) of each, constant (s, n).

    Nodes are visited in reverse order, so that all uses of a tensor have been added up when it is reached. Roots that
    are boxes may get their coefficients in windows.
    """
    first = a.values if isinstance(a, Windows) else a
    held: dict[fx.Node, Tensor | Windows] = {node: a}
    constant = first.new_zeros((len(first), run.n))
    for current in reversed(run.graph.nodes):
        if current not in held or current not in run.calls or (elide and not run.calls[current][0].exact):
            continue
        parts, more = _one_back(run, node, current, held.pop(current))
        constant = constant if more is None else constant + more
        for source, piece in zip(run.sources[current], parts, strict=True):
            held[source] = _sum(held[source], piece) if source in held else piece
    boxes = {source for source in held if source not in run.roots or run.roots[source][0].independent}
    return {source: part if source in boxes else _whole(part) for source, part in held.items()}, constant


def _one_back(
    run: Sweep, start: fx.Node, current: fx.Node, part: Tensor | Windows
) -> tuple[tuple[Tensor | Windows, ...], Tensor | None]:
    """From an operator's output to its inputs: their coefficients, and what is added to the bound (s, n)."""
    rule, call = run.calls[current]
    slope = run.slopes.get((start, current))
    if slope is not None:
        rows = len(part.values) if isinstance(part, Windows) else len(part)
        call = replace(call, slope=slope.repeat_interleave(rows // len(slope), 0))
    found = rule.windowed(call, part) if isinstance(part, Windows) else None
    parts, more = found if found is not None else rule.backward(call, _whole(part))
    if current in run.noise:
        noise = run.noise[current]
        wide = part.having(part.values.abs()).dot(noise) if isinstance(part, Windows) else call.dot(part.abs(), noise)
        more = -wide if more is None else more - wide
    return parts, more


def _sum(one: Tensor | Windows, two: Tensor | Windows) -> Tensor | Windows:
    found = one.plus(two) if isinstance(one, Windows) and isinstance(two, Windows) else None
    return found if found is not None else _whole(one) + _whole(two)


def _whole(part: Tensor | Windows) -> Tensor:
    return part.dense() if isinstance(part, Windows) else part


def specification(C: Tensor | None, out: Tensor) -> Tensor:
    """Rows (s, n, c) from C (n, s, c), (s, c) or None for the outputs themselves."""
    if out.dim() != 2:
        raise InputError(f"bounds: the model gives shape {tuple(out.shape)}; expected (n, c)")
    n, classes = out.shape
    if C is None:
        C = torch.eye(classes, dtype=out.dtype, device=out.device)
    if C.shape[-1] != classes or C.dim() not in (2, 3) or (C.dim() == 3 and len(C) != n):
        raise InputError(f"bounds: C has shape {tuple(C.shape)}; expected (s, {classes}) or ({n}, s, {classes})")
    return C[:, None].expand(-1, n, -1) if C.dim() == 2 else C.movedim(1, 0)
