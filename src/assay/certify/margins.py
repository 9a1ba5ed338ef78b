"""Lower bounds on margins z_y - z_j from a sweep of intervals, merged with the last layer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from assay.certify.bounds.affine import Linear
from assay.certify.bounds.engine import Sweep
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


def specification(where: str, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"] | None) -> Float[Tensor, "k n c"]:
    """The rows whose products with the logits are bounded: z_y - z_j over j != y, or every logit where y is None."""
    if logits.dim() != 2:
        raise InputError(f"{where}: outputs have shape {tuple(logits.shape)}; expected logits (n, c)")
    n, c = logits.shape
    every = torch.eye(c, dtype=logits.dtype, device=logits.device)
    if y is None:
        return every[:, None].expand(c, n, c)
    check_labels(where, y, n, c)
    others = torch.arange(c, device=y.device).expand(n, c)
    others = others[others != y[:, None]].view(n, c - 1)
    return (every[y][:, None] - every[others]).movedim(1, 0)


def elided(run: Sweep, a: Float[Tensor, "k n c"]) -> tuple[fx.Node, Tensor, Float[Tensor, "k n"]]:
    """Coefficients on the logits carried back through the last layer that mixes elements: their product is one layer.

    Gives the tensor that feeds it, the coefficients on that (k, *shape), and the constant.
    """
    node, constant, mixed = run.graph.output, a.new_zeros(a.shape[:2]), False
    while not mixed and node in run.calls and len(run.sources[node]) == 1:
        rule, call = run.calls[node]
        if not isinstance(rule, Linear):
            break
        (a,), more = rule.backward(call, a)
        constant = constant if more is None else constant + more
        node, mixed = run.sources[node][0], rule.mixes
    return node, a, constant


def lower_margins(run: Sweep, y: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Interval lower bounds of z_y - z_j, j != y in order (Gowal et al., 2018, arXiv:1810.12715, eq. 7)."""
    node, a, constant = elided(run, specification("margins", run.values[run.graph.output].lower, y))
    h = run.values[node]
    return (constant + (a * h.center - a.abs() * h.radius).flatten(2).sum(2)).T
