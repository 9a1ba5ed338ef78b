"""Bounds of a model that is asked for guarantees: in float64, with slack for the float32 that it runs in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from assay.certify.bounds.alpha import Alpha, tuned_lower
from assay.certify.bounds.engine import Sweep, sweep
from assay.certify.bounds.graph import Graph, forget, graph_of
from assay.certify.bounds.interval import SLACK
from assay.certify.bounds.module import REFINE, Method
from assay.certify.bounds.perturbation import LpBall, Perturbation
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of


def checked_graph(model: nn.Module, x: Tensor) -> Graph:
    """The graph, once it agrees with the model on two samples: one that was kept is made anew where it does not.

    InputError for a model that does other things each time, and for one that does not run in float32 or float64.
    """
    few = x[:2].to(device_of(model))
    narrow = {t.dtype for t in (few, *model.parameters()) if t.is_floating_point()} - {torch.float32, torch.float64}
    if narrow:
        raise InputError(f"bounds: {type(model).__name__} or x is in {narrow.pop()}; expected float32 or float64")
    for _ in range(2):
        graph = graph_of(model, few)
        if _agrees(graph, model, few):
            return graph
        forget(model)
    raise InputError(
        f"bounds: the graph of {type(model).__name__} disagrees with the model; expected outputs that depend on "
        "the input alone"
    )


def _agrees(graph: Graph, model: nn.Module, x: Tensor) -> bool:
    out, real = run_of(graph, model, x, LpBall(eps=0.0), "IBP").values[graph.output], model(x).double()
    slack = 1e-5 * (1 + out.magnitude)
    return out.lower.shape == real.shape and bool(((out.lower - slack <= real) & (real <= out.upper + slack)).all())


def run_of(graph: Graph, model: nn.Module, x: Tensor, perturbation: Perturbation, method: Method) -> Sweep:
    """The intermediate bounds of a method, sound for the model in float32."""
    device = device_of(model)
    if graph.n is not None and graph.n != len(x):
        graph = graph_of(model, x.to(device))
    return sweep(graph, model, x.to(device).double(), perturbation, refine=REFINE[method], slack=SLACK)


def tuned(
    graph: Graph, model: nn.Module, x: Tensor, perturbation: Perturbation, C: Callable[[Tensor], Tensor], alpha: Alpha
) -> Tensor:
    """Lower bounds (n, s) by alpha-CROWN, sound for the model in float32."""
    device = device_of(model)
    if graph.n is not None and graph.n != len(x):
        graph = graph_of(model, x.to(device))
    rows = C(model(x.to(device)).double())
    return tuned_lower(graph, model, x.to(device).double(), perturbation, rows, alpha, slack=SLACK)
