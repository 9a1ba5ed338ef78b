"""Certified robustness by interval bound propagation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from assay.certify.base import Certificate, Certifier, Region, best_other
from assay.certify.intervals import checked_trace, last_linear, propagate
from assay.certify.rules import SLACK, Interval
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating, predict


@dataclass(frozen=True, kw_only=True)
class IBP(Certifier):
    """Whether every margin z_pred - z_j stays positive over the linf ball of radius ``eps`` cut to ``bounds``.

    Gowal et al., 2018, arXiv:1810.12715, section 3. The last linear layer is merged with the margins ("elision of the
    last layer", eq. 7 there), which is tighter than comparing the bounds of two logits. Deterministic: confidence 1.
    ``eps`` > 0 is in the data's units; ``bounds`` None leaves the ball whole. Raises InputError on an operator without
    a rule (see Intervals).
    """

    eps: float = 8 / 255
    bounds: tuple[float, float] | None = (0.0, 1.0)
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise InputError(f"IBP: eps is {self.eps}; expected a finite number above 0")

    def certify(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], *, seed: int = 0
    ) -> Certificate:
        check_inputs("IBP", x, y, self.bounds)
        prediction = predict(model, x, batch_size=self.batch_size).argmax(1)
        robust = self.margins(model, x, prediction) > 0
        radius = torch.where(robust, self.eps, 0.0).double()
        return Certificate(robust & (prediction == y), prediction, radius)

    def margins(self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Lower bounds (n,) of min over j != y of z_y - z_j (before a final positive factor, where there is one)."""
        region, parts = Region("linf", self.eps, self.bounds), []
        with evaluating(model), torch.no_grad():
            graph, device = checked_trace(model, x), device_of(model)
            last = last_linear(model, graph)
            for start in range(0, len(x), self.batch_size):
                rows = slice(start, start + self.batch_size)
                box = Interval(*region.box(x[rows].to(device)))
                parts.append(_margins(model, graph, last, box, y[rows].to(device)).cpu())
        return torch.cat(parts)


def _margins(
    model: nn.Module, graph: fx.Graph, last: tuple[fx.Node, nn.Linear] | None, box: Interval, y: Tensor
) -> Float[Tensor, " n"]:
    if last is None:
        out = propagate(model, graph, box)
        own = out.lower.gather(1, y[:, None])[:, 0]
        return own - best_other(out.upper, y)
    feed, layer = last
    z = propagate(model, graph, box, stop=feed)
    if z.lower.dim() != 2:
        raise InputError(f"IBP: the last layer sees shape {tuple(z.lower.shape)}; expected (n, d): flatten before it")
    worst = torch.empty(len(y), dtype=torch.float64, device=y.device)
    for k in y.unique():  # one matrix of differences a class, rather than one a sample
        mine = y == k
        gap = _elided(layer, int(k), Interval(z.lower[mine], z.upper[mine]))
        worst[mine] = -best_other(-gap, y[mine])
    return worst


def _elided(layer: nn.Linear, k: int, z: Interval) -> Float[Tensor, "n c"]:
    """Lower bounds of z_k - z_j for all j, from the last hidden layer; slack covers the rounding of both logits."""
    w = layer.weight.double()
    b = layer.bias.double() if layer.bias is not None else torch.zeros(len(w), dtype=torch.float64, device=w.device)
    difference, size = w[k] - w, w[k].abs() + w.abs()
    middle = z.center @ difference.T + (b[k] - b)
    slack = SLACK * (z.magnitude @ size.T + b[k].abs() + b.abs())
    return middle - z.radius @ difference.abs().T - slack
