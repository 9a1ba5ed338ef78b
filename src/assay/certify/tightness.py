"""How much of the box that interval bounds give is really reached: propagation tightness."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from assay.certify.bounds import LpBall, graph_of
from assay.certify.bounds.affine import Linear
from assay.certify.bounds.engine import Sweep, sweep
from assay.certify.bounds.graph import owner_of, place_of
from assay.certify.bounds.module import margins, specification
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating

Pattern = Literal["local", "center"] | None
PATTERNS = ("local", "center")
LEAST = 1e-8  # boxes below this radius count as this large, as in the released code: dead outputs have tightness 1
aten = torch.ops.aten


def propagation_tightness(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"] | None = None,
    *,
    eps: float,
    relu: Pattern = "local",
    data_range: tuple[float, float] = (0.0, 1.0),
    batch_size: int = BATCH,
) -> Float[Tensor, "n k"]:
    """Optimal box over layer-wise box of each margin, in [0, 1], float64: 1 where interval bounds lose nothing.

    Mao et al., 2024, arXiv:2306.10426, section 3, and the released code. Arguments, shapes and errors: see
    propagation_boxes. Outputs that nothing reaches (radius below 1e-8) count as tight. High tightness certifies
    nothing, and low tightness is no lack of robustness.
    """
    best, layered = propagation_boxes(model, x, y, eps=eps, relu=relu, data_range=data_range, batch_size=batch_size)
    return best.clamp_min(LEAST) / layered.clamp_min(LEAST)


def propagation_boxes(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"] | None = None,
    *,
    eps: float,
    relu: Pattern = "local",
    data_range: tuple[float, float] = (0.0, 1.0),
    batch_size: int = BATCH,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Radii of the optimal and of the layer-wise box around the outputs of the network linearised at each sample.

    The linearisation keeps the ReLUs whose input at ``x`` ("local"), or at the centre of the clipped box ("center"), is
    not negative; None treats ReLU as the identity. With J its Jacobian and e half the width of the box of radius
    ``eps`` around x cut to ``data_range``, the optimal radius is |J| e (one backward pass) and the layer-wise one
    |W_L| D ... D |W_1| e (one forward pass with absolute weights). Outputs are the margins z_y - z_j over j != y, in
    the order of j and merged with the last layer (k = classes - 1), or the logits where ``y`` is None (k = classes).
    Batch norm is in evaluation mode. Raises InputError for eps < 0, values out of range, and layers that are neither
    linear nor ReLU (with name and place).
    """
    where = "propagation_tightness"
    check_inputs(where, x, y, data_range)
    if not 0 <= eps < math.inf:
        raise InputError(f"{where}: eps is {eps}; expected a finite number >= 0")
    if relu is not None and relu not in PATTERNS:
        raise unknown("relu of propagation_tightness", relu, PATTERNS)
    parts = []
    with evaluating(model), torch.no_grad():
        device = device_of(model)
        for start in range(0, len(x), batch_size):
            points = x[start : start + batch_size].to(device)
            labels = None if y is None else y[start : start + batch_size].to(device)
            box = LpBall(eps=eps, low=data_range[0], high=data_range[1]).box(points.double())
            at = box.center if relu == "center" else points.double()
            run = sweep(graph_of(model, points), model, at, LpBall(eps=0.0))
            parts.append([t.cpu() for t in _boxes(run, box.radius, labels, relu)])
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _boxes(run: Sweep, e: Tensor, y: Tensor | None, relu: Pattern) -> tuple[Tensor, Tensor]:
    """|J| e and the layer-wise radius (n, k) of the margins of one batch."""
    radii, logits = _radii(run, e, relu), run.values[run.graph.output].lower
    if y is not None and logits.dim() == 2:
        check_labels("propagation_tightness", y, *logits.shape)
    node, a = _elided(run, specification(None if y is None else margins(y, logits.shape[-1], logits), logits))
    layered = (a.abs() * radii[node]).flatten(2).sum(2)
    best = (_jacobian(run, node, a, relu).abs() * e).flatten(2).sum(2)
    return best.T, layered.T


def _rule(run: Sweep, node: fx.Node) -> Linear | None:
    """The linear rule of an operator; None for ReLU."""
    rule, call = run.calls[node]
    if isinstance(rule, Linear):
        return rule
    if call.op is aten.relu.default:
        return None
    raise InputError(
        f"propagation_tightness: {owner_of(node)} at {place_of(node)!r} is not linear; expected linear layers and ReLU"
    )


def _alive(run: Sweep, node: fx.Node, relu: Pattern) -> Tensor:
    """Which units of a ReLU let pass: all but those with a negative input."""
    (z,) = run.calls[node][1].inputs
    return torch.ones_like(z.lower) if relu is None else (z.lower >= 0).to(z.lower.dtype)


def _radii(run: Sweep, e: Tensor, relu: Pattern) -> dict[fx.Node, Tensor]:
    """The layer-wise radius of every tensor that depends on the input."""
    found = {run.graph.input: e}
    for node in run.graph.nodes:
        if node in run.calls:
            inputs, rule = [found[s] for s in run.sources[node]], _rule(run, node)
            found[node] = (
                inputs[0] * _alive(run, node, relu) if rule is None else rule.size(run.calls[node][1], *inputs)
            )
    return found


def _elided(run: Sweep, a: Tensor) -> tuple[fx.Node, Tensor]:
    """The specification carried back through the last layer that mixes elements, so that their product is one layer."""
    node, mixed = run.graph.output, False
    while not mixed and node in run.calls and len(run.sources[node]) == 1:
        rule = _rule(run, node)
        if rule is None:
            break
        (a,) = rule.transpose(run.calls[node][1], a)
        node, mixed = run.sources[node][0], rule.mixes
    return node, a


def _jacobian(run: Sweep, start: fx.Node, a: Tensor, relu: Pattern) -> Tensor:
    """a (k, *shape of ``start``) carried back to the input through the linearised network."""
    held = {start: a}
    for node in reversed(run.graph.nodes):
        if node in held and node in run.calls:
            part, rule = held.pop(node), _rule(run, node)
            call = run.calls[node][1]
            pieces = (part * _alive(run, node, relu),) if rule is None else rule.transpose(call, part)
            for source, piece in zip(run.sources[node], pieces, strict=True):
                held[source] = held[source] + piece if source in held else piece
    return held[run.graph.input]
