"""Loss fusion: one bound on the cross-entropy in place of one bound a class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.certify.bounds.engine import Sweep, backward
from assay.certify.bounds.module import BoundedModule, Method, bounds_of, margins
from assay.certify.bounds.perturbation import Perturbation
from assay.certify.bounds.relaxation import chord


def loss_fusion_bound(
    module: BoundedModule,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    perturbation: Perturbation | None,
    method: Method = "CROWN-IBP",
    *,
    weights: Mapping[str, Perturbation] | None = None,
) -> Float[Tensor, " n"]:
    """Upper bounds of each sample's cross-entropy over the perturbation (Xu et al., 2020, arXiv:2002.12920, sec. 3.3).

    log sum_i exp(z_i - z_y) is bounded as one output: the exponentials by their chords over the intervals of the
    margins, their sum by a single backward pass whatever the number of classes. Differentiable in the parameters.
    """
    return fused_loss(module.run(x, perturbation, method, weights=weights), y, 0.0 if method == "IBP" else 1.0)


def fused_loss(
    run: Sweep, y: Int[Tensor, " n"], share: float = 1.0, ends: tuple[Tensor, Tensor] | None = None
) -> Float[Tensor, " n"]:
    """The bound from intermediate bounds: ``share`` of the backward bound on the sum of exponentials, the rest of IBP.

    1 is the fused bound, 0 that of interval bounds; between them the released trainer's mixture. ``ends``: intervals
    (n, c - 1) each of the margins z_j - z_y, over which the chords are drawn; None: interval bounds. With the ends that
    a backward pass for each margin gives, the fused bound is never above cross-entropy of these ends (theorem 2 of the
    paper), since a chord lies below exp(upper end) and one backward pass on a sum loses no more than several; with
    interval bounds, which cost no such passes, it can be.
    """
    out = run.values[run.graph.output]
    C = -margins(y, out.lower.shape[1], out.lower)  # rows z_j - z_y, (n, c - 1, c)
    low, high = ends if ends is not None else bounds_of(run, C, "IBP")
    shift = high.detach().amax(1).clamp(min=0)[:, None]  # exp stays in range; added back after the log
    top = (high - shift).exp()
    total = (1 - share) * top.sum(1)
    if share > 0:
        slope, intercept = chord(low, high, (low - shift).exp(), top, top)
        row = (slope[:, None] @ C).movedim(1, 0)  # (1, n, c): all slopes are positive
        total = total + share * (intercept.sum(1) - backward(run, run.graph.output, -row)[0])
    own = torch.exp(-shift[:, 0])  # the class y itself, z_y - z_y = 0
    return (total + own).log() + shift[:, 0]
