"""A matrix product in which both the input and the weight are perturbed."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.certify.bounds.interval import Ball, Interval
from assay.certify.bounds.registry import Call, Form, Rule, negative, positive, register

aten = torch.ops.aten


class PerturbedWeight(Rule):
    """``linear(h, weight, bias)``, h (n, in) and weight (n, out, in) both perturbed (Xu et al., 2020, section 3.4).

    Each product h w lies over the plane l_h w + l_w h - l_h l_w and under l_h w + u_w h - l_h u_w (McCormick), so the
    weight's coefficient is a l_h whatever the sign of a.
    """

    def interval(self, call: Call) -> Interval:
        h, weight = self._parts(call)
        constant = call.args[2] if len(call.args) > 2 and call.args[2] is not None else 0.0
        first = (weight.x if isinstance(weight, Ball) else weight.center)[0]  # the same for every sample
        middle, spread = h.center @ first.T, h.radius @ first.abs().T
        reach = (weight.upper[0] - first).maximum(first - weight.lower[0])
        moved = h.magnitude @ reach.T
        if isinstance(weight, Ball):
            over = (weight.eps**2 @ (h.magnitude**2)[:, :, None])[..., 0].sqrt()
            moved = moved.minimum(over)
        return Interval(middle - spread - moved + constant, middle + spread + moved + constant)

    def rounding(self, call: Call, out: Interval) -> Tensor:
        h, weight = self._parts(call)
        size = (weight.magnitude @ h.magnitude[:, :, None])[..., 0]
        return size + call.args[2].abs() if len(call.args) > 2 and call.args[2] is not None else size

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        h, weight = self._parts(call)
        to_h = _applied(positive(a), weight.lower) + _applied(negative(a), weight.upper)
        constant = -(to_h * h.lower).sum(2)
        if len(call.args) > 2 and call.args[2] is not None:
            constant = constant + call.dot(a, call.args[2])
        return (to_h, a[..., None] * h.lower[:, None]), constant

    def forward(self, call: Call, forms: tuple[Form, ...]) -> Form:
        raise call.error("forward mode with a perturbed weight", "a backward method")

    def _parts(self, call: Call) -> tuple[Interval, Interval]:
        h, weight = call.inputs
        if not isinstance(call.args[1], Interval) or h.lower.dim() != 2:
            raise call.error(f"a perturbed weight on shape {tuple(h.lower.shape)}", "(n, d)")
        return h, weight


def _applied(a: Tensor, weight: Tensor) -> Tensor:
    """a (s, n, out) times weight (n, out, in)."""
    return (a.movedim(0, 1) @ weight).movedim(1, 0)


register(PerturbedWeight(), aten.linear.default, inputs=2)
