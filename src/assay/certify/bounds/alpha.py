"""alpha-CROWN: the slopes below unstable neurons are optimised for each bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.certify.bounds.engine import Slopes, Sweep, backward, specification, sweep
from assay.certify.bounds.graph import Graph, before
from assay.certify.bounds.perturbation import Perturbation
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Alpha:
    """How slopes are optimised (Xu et al., 2021, arXiv:2011.13824, section 3.2).

    ``steps`` of Adam at rate ``lr`` times ``decay`` a step, each followed by a projection on [0, 1]. A bound on an
    output has slopes of its own for every neuron (each row of the specification and each sample); with ``inner`` the
    bounds inside the model are optimised too, those of one tensor with two slopes a neuron and sample (one for its
    lower and one for its upper bounds).
    """

    steps: int = 20
    lr: float = 0.3
    decay: float = 0.98
    inner: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0 or self.lr <= 0 or not 0 < self.decay <= 1:
            raise InputError(
                f"Alpha: steps={self.steps}, lr={self.lr}, decay={self.decay}; "
                "expected steps >= 0, lr > 0, 0 < decay <= 1"
            )


def tuned_lower(
    graph: Graph,
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    perturbation: Perturbation,
    C: Tensor | None,
    alpha: Alpha,
    *,
    sign: float = 1.0,
    slack: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Float[Tensor, "n s"]:
    """Lower bounds on ``sign`` C f(x'): the best of CROWN's and of every step, so never looser than CROWN's."""

    def swept(slopes: Slopes) -> Sweep:
        return sweep(graph, model, x, perturbation, refine="backward", slack=slack, options=options, slopes=slopes)

    with torch.no_grad():
        first = swept({})
        rows = sign * specification(C, first.values[graph.output].lower)
        best = backward(first, graph.output, rows)
    slopes = _start(first, len(rows), alpha.inner)
    if not slopes:
        return best.T
    optimizer = torch.optim.Adam(list(slopes.values()), lr=alpha.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, alpha.decay)
    with torch.enable_grad():
        for _ in range(alpha.steps):
            run = swept(slopes) if alpha.inner else first
            run.slopes = slopes
            found = backward(run, graph.output, rows)
            optimizer.zero_grad(set_to_none=True)
            (-found.sum()).backward(inputs=list(slopes.values()))
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                best = best.maximum(found)
                for slope in slopes.values():
                    slope.clamp_(0, 1)
    return best.T.detach()


def _start(run: Sweep, rows: int, inner: bool) -> Slopes:
    """The adaptive slopes, for each tensor that is bounded backward and each neuron before it that has a choice."""
    choices = [node for node, (rule, _) in run.calls.items() if getattr(rule, "tunable", False)]
    starts = {run.graph.output: rows}
    if inner:
        refined = {run.sources[node][0] for node in choices} & run.refined
        starts |= dict.fromkeys(refined, 2)
    slopes: Slopes = {}
    for start, count in starts.items():
        earlier = before(start)
        for node in choices:
            if node in earlier:
                box = run.calls[node][1].inputs[0]
                own = (box.upper > -box.lower).to(box.lower)
                slopes[start, node] = own.expand(count, *own.shape).clone().requires_grad_()
    return slopes
