"""Bounds through a graph: one sweep of intervals, and linear forms forward or backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from assay.certify.bounds.graph import Graph, cast, evaluate, owner_of, place_of
from assay.certify.bounds.interval import Interval
from assay.certify.bounds.perturbation import Perturbation
from assay.certify.bounds.registry import Call, Layout, Rule, leaves, rule_of
from assay.runtime.errors import InputError

aten = torch.ops.aten
BUDGET = 2**24  # coefficients held at once in a backward pass


@dataclass
class Sweep:
    """Bounds on every tensor of a graph for one batch; see ``sweep``."""

    graph: Graph
    roots: dict[fx.Node, tuple[Perturbation, Tensor]]
    n: int
    slack: float
    options: dict[str, Any]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    calls: dict[fx.Node, tuple[Rule, Call]] = field(default_factory=dict)
    sources: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    noise: dict[fx.Node, Tensor] = field(default_factory=dict)
    settled: set[fx.Node] = field(default_factory=set)


def sweep(
    graph: Graph,
    model: nn.Module,
    x: Tensor,
    perturbation: Perturbation,
    *,
    refine: bool = False,
    slack: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Sweep:
    """Intervals of every tensor, for inputs in ``perturbation`` around x (n, ...), in x's precision.

    ``refine``: the inputs of operators that are not linear get bounds from a backward pass of their own (CROWN), cut
    with the intervals. ``slack`` times the magnitudes that enter an operator is added to its output's bounds
    (SLACK: what float32 may round).
    """
    run = Sweep(graph, {graph.input: (perturbation, x)}, len(x), slack, dict(options or {}))
    state = graph.state(model, x.dtype)

    def step(node: fx.Node, args: Any, kwargs: Any) -> Any:
        return _step(run, node, args, kwargs, refine)

    run.values.update({**state, graph.input: perturbation.box(x)})
    run.settled.add(graph.input)
    evaluate(graph, run.values, step)
    return run


def _step(run: Sweep, node: fx.Node, args: Any, kwargs: Any, refine: bool) -> Any:
    op: Any = aten.reshape.default if node.target is aten.view.default else node.target
    touched = [v for v in leaves((args, kwargs)) if isinstance(v, Interval)]
    if not touched or op is aten.sym_size.int:
        shaped = [v.lower if isinstance(v, Interval) else v for v in args]
        return cast(op(*shaped, **kwargs), run.roots[run.graph.input][1].dtype)
    rule = rule_of(op, len(touched))
    if rule is None:
        raise InputError(f"bounds: no rule for {owner_of(node)} at {place_of(node)!r}; expected an operator with one")
    sources = tuple(v for v in leaves((node.args, node.kwargs)) if isinstance(run.values.get(v), Interval))
    layout = run.graph.layouts.get(node, Layout())
    call = Call(op, tuple(args), kwargs, place_of(node), run.n, layout, run.options)
    if refine and not rule.exact and _refine(run, rule, call, sources):
        fresh = fx.node.map_arg((node.args, node.kwargs), run.values.__getitem__)
        call = Call(op, tuple(fresh[0]), fresh[1], call.place, run.n, layout, run.options)
    out = rule.interval(call)
    if run.slack:
        noise = rule.rounding(call, out)
        if noise is not None:
            run.noise[node] = run.slack * noise
            out = out.widen(run.noise[node])
    run.calls[node], run.sources[node] = (rule, call), sources
    return out


def _refine(run: Sweep, rule: Rule, call: Call, sources: tuple[fx.Node, ...]) -> bool:
    """Better bounds for the inputs of an operator, where its relaxation uses them; whether there are any."""
    wanted, changed = rule.needed(call), False
    for k, source in enumerate(sources):
        if source in run.settled or _exact(run, source):
            continue
        now = run.values[source]
        mask = wanted[k] if wanted is not None else torch.ones_like(now.lower, dtype=torch.bool)
        found = selected(run, source, mask)
        if found is not None:
            run.values[source], changed = found.within(now), True
        run.settled.add(source)
    return changed


def _exact(run: Sweep, node: fx.Node) -> bool:
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
    layout = run.graph.layouts.get(node, Layout())
    index = layout.rows(torch.arange(mask.numel(), device=mask.device).reshape(1, *mask.shape), run.n)[0]
    chosen = layout.rows(mask[None], run.n)[0]
    count = int(chosen.sum(1).max())
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    where = index.gather(1, order)  # (n, count) positions in the flat tensor, the chosen ones of each sample first
    value = run.values[node]
    lower, upper = value.lower.flatten().clone(), value.upper.flatten().clone()
    for part in where.split(_chunk(run, mask.numel()), dim=1):
        rows = part.T  # (s, n)
        a = torch.zeros((len(rows), mask.numel()), dtype=lower.dtype, device=lower.device).scatter_(1, rows, 1.0)
        low = backward(run, node, torch.cat((a, -a)).reshape(-1, *mask.shape))
        s = len(rows)
        lower = lower.scatter(0, rows.flatten(), low[:s].flatten())
        upper = upper.scatter(0, rows.flatten(), -low[s:].flatten())
    lower, upper = lower.reshape(mask.shape), upper.reshape(mask.shape)
    return Interval(torch.where(mask, lower, value.lower), torch.where(mask, upper, value.upper))


def _chunk(run: Sweep, size: int) -> int:
    """How many rows of a specification one backward pass takes: two signs each, on the largest tensor."""
    widest = max((v.lower.numel() for v in run.values.values() if isinstance(v, Interval)), default=size)
    return max(1, BUDGET // (2 * widest))


def backward(run: Sweep, node: fx.Node, a: Tensor) -> Tensor:
    """Lower bounds (s, n) of a . node, for coefficients a (s, *shape of node)."""
    found, constant = coefficients(run, node, a)
    for root, part in found.items():
        perturbation, x = run.roots[root]
        constant = constant + perturbation.least(part, x)
    return constant


def coefficients(run: Sweep, node: fx.Node, a: Tensor) -> tuple[dict[fx.Node, Tensor], Tensor]:
    """The linear lower bound of a . node on the roots: coefficients (s, *shape) of each, constant (s, n).

    Nodes are visited in reverse order, so that all uses of a tensor have been added up when it is reached.
    """
    held, constant = {node: a}, a.new_zeros((len(a), run.n))
    for current in reversed(run.graph.nodes):
        if current not in held or current not in run.calls:
            continue
        part = held.pop(current)
        rule, call = run.calls[current]
        if current in run.noise:
            constant = constant - call.dot(part.abs(), run.noise[current])
        parts, more = rule.backward(call, part)
        constant = constant if more is None else constant + more
        for source, piece in zip(run.sources[current], parts, strict=True):
            held[source] = held[source] + piece if source in held else piece
    return held, constant
