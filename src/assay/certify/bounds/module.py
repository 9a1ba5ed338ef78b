"""Bounds on a model's outputs by any of the methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.certify.bounds.alpha import Alpha, tuned_lower
from assay.certify.bounds.engine import Refine, Sweep, backward, rows_at_once, specification, sweep
from assay.certify.bounds.graph import Graph, forget, graph_of
from assay.certify.bounds.perturbation import LpBall, Perturbation
from assay.runtime.errors import InputError, unknown

Method = Literal["IBP", "forward", "CROWN-IBP", "IBP+backward", "forward+backward", "CROWN", "alpha-CROWN"]
REFINE: Mapping[str, Refine] = {
    "IBP": None,
    "forward": "forward",
    "CROWN-IBP": None,
    "IBP+backward": None,
    "forward+backward": "forward",
    "CROWN": "backward",
    "alpha-CROWN": "backward",
}
LOOSER: Mapping[str, tuple[Method, ...]] = {  # what a method's bounds are cut with
    "CROWN-IBP": ("IBP",),
    "IBP+backward": ("IBP",),
    "forward+backward": ("IBP", "forward"),
    "CROWN": ("IBP", "CROWN-IBP"),
    "alpha-CROWN": ("IBP", "CROWN-IBP", "CROWN"),
}


class BoundedModule:
    """Provable bounds on the outputs of ``model`` (Xu et al., 2020, arXiv:2002.12920).

    ``example`` (n, ...) fixes the shape and the precision of inputs. ``options``: "relu" is the slope below an unstable
    ReLU ("adaptive", "zero", "one", "same"). Parameters are read when bounds are computed, and bounds are
    differentiable in them. So are the modes of modules (training or evaluation) and the plain values that they hold; a
    change of anything else (a tensor that is no buffer, a function) is seen by a new BoundedModule.
    """

    def __init__(self, model: nn.Module, example: Float[Tensor, "n ..."], options: Mapping[str, Any] | None = None):
        self.model, self.example, self.options = model, example, dict(options or {})
        forget(model)
        self.graph_for(example)

    def graph_for(self, x: Tensor) -> Graph:
        """The model's graph for inputs like x."""
        return graph_of(self.model, x.to(self.example.dtype))

    def compute_bounds(
        self,
        x: Float[Tensor, "n ..."],
        perturbation: Perturbation | None,
        C: Float[Tensor, "n s c"] | Float[Tensor, "s c"] | None = None,
        method: Method = "CROWN",
        *,
        weights: Mapping[str, Perturbation] | None = None,
        slack: float = 0.0,
        nested: bool = True,
    ) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
        """Bounds (n, s) on C f(x') for all x' in the perturbation around x, in x's precision.

        C None: the outputs (n, c) themselves. ``weights`` perturbs parameters too, by name; ``perturbation`` None
        leaves the input exact. ``slack``: see ``sweep``. Slopes are fixed before it is known what they are for, so that
        a backward pass may be looser than intervals: ``nested`` cuts its bounds with those of every looser method.
        """
        run = None
        if method == "alpha-CROWN":
            if perturbation is None or weights:
                raise InputError("bounds: alpha-CROWN perturbs inputs alone; expected a perturbation and no weights")
            found = self.tuned(x, perturbation, C, slack=slack), -self.tuned(x, perturbation, C, -1.0, slack=slack)
        else:
            run = self.run(x, perturbation, method, weights=weights, slack=slack)
            found = bounds_of(run, C, method)
        for looser in LOOSER.get(method, ()) if nested else ():
            if run is None or REFINE[looser] != run.refine:
                try:
                    run = self.run(x, perturbation, looser, weights=weights, slack=slack)
                except InputError:  # an operator's domain that only the tighter bounds inside keep
                    continue
            lower, upper = bounds_of(run, C, looser)
            found = found[0].maximum(lower), found[1].minimum(upper).maximum(found[0].maximum(lower))
        return found

    def tuned(
        self,
        x: Tensor,
        perturbation: Perturbation,
        C: Tensor | None = None,
        sign: float = 1.0,
        *,
        alpha: Alpha | None = None,
        slack: float = 0.0,
    ) -> Float[Tensor, "n s"]:
        """Lower bounds by alpha-CROWN on C f(x') times ``sign``; not differentiable in the parameters."""
        graph, alpha = self.graph_for(x), alpha or Alpha()
        return tuned_lower(graph, self.model, x, perturbation, C, alpha, sign=sign, slack=slack, options=self.options)

    def run(
        self,
        x: Tensor,
        perturbation: Perturbation | None,
        method: Method = "CROWN",
        *,
        weights: Mapping[str, Perturbation] | None = None,
        slack: float = 0.0,
    ) -> Sweep:
        """The intermediate bounds that a method uses."""
        if method not in REFINE:
            raise unknown("method of bounds", method, REFINE)
        return sweep(
            self.graph_for(x),
            self.model,
            x,
            perturbation,
            weights=weights,
            refine=REFINE[method],
            slack=slack,
            options=self.options,
        )

    def ends(self, run: Sweep, y: Int[Tensor, " n"], method: Method) -> tuple[Tensor, Tensor]:
        """Bounds (n, c - 1) on z_j - z_y, each by a pass of its own, from intermediate bounds."""
        out = run.values[run.graph.output].lower
        return bounds_of(run, -margins(y, out.shape[1], out), method)

    def margin_bounds(
        self,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        eps: float,
        method: Method = "CROWN",
        *,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> Float[Tensor, "n c-1"]:
        """Lower bounds of z_y - z_j over the linf ball cut to ``bounds``, for the classes j other than y in order."""
        low, high = bounds if bounds is not None else (None, None)
        run = self.run(x, LpBall(eps=eps, low=low, high=high), method)
        classes = run.values[run.graph.output].lower.shape[1]
        return lower_of(run, margins(y, classes, x), method)

    def certified(
        self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float, method: Method = "CROWN"
    ) -> Bool[Tensor, " n"]:
        """Whether every margin stays positive over the linf ball cut to [0, 1]."""
        return (self.margin_bounds(x, y, eps, method) > 0).all(1)


def margins(y: Int[Tensor, " n"], classes: int, like: Tensor) -> Float[Tensor, "n c-1 c"]:
    """The specification whose rows are z_y - z_j, j running over the other classes in order."""
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None]).long()
    return eye[y][:, None] - eye[others]


def lower_of(run: Sweep, C: Tensor | None, method: Method) -> Float[Tensor, "n s"]:
    """Lower bounds on C times the output from intermediate bounds, specification rows in chunks of flat memory."""
    rows = specification(C, run.values[run.graph.output].lower)
    elide = method in ("IBP", "forward")
    parts = [backward(run, run.graph.output, part, elide=elide) for part in rows.split(2 * rows_at_once(run))]
    return torch.cat(parts).T


def bounds_of(run: Sweep, C: Tensor | None, method: Method) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
    """Bounds on C times the output, or on the output itself (C None), from intermediate bounds."""
    box = run.values[run.graph.output]
    if C is None and method in ("IBP", "forward"):
        return box.lower, box.upper
    C = torch.eye(box.lower.shape[-1]).to(box.lower) if C is None else C
    return lower_of(run, C, method), -lower_of(run, -C, method)
