"""Bounds on logits by interval arithmetic, and by linear relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.certify.base import Bounder, Region
from assay.certify.bounds.checked import checked_graph, run_of
from assay.certify.bounds.module import Method, bounds_of
from assay.certify.bounds.perturbation import LpBall
from assay.runtime.checks import check_inputs
from assay.runtime.inference import BATCH, evaluating


@dataclass(frozen=True, kw_only=True)
class Intervals(Bounder):
    """Interval bound propagation (Gowal et al., 2018, arXiv:1810.12715, section 3, eq. 6).

    Through the operators of the model's ``torch.export`` graph; one without a rule raises InputError with its name and
    place. Exact on linear models under linf up to the outward slack of 1e-6 (relative, at each operator) that covers
    float32 rounding. An l2 ball is used by the first linear layer, and by its box elsewhere.
    """

    methods: ClassVar[tuple[Method, ...]] = ("IBP",)

    batch_size: int = BATCH

    def bounds(
        self, model: nn.Module, x: Float[Tensor, "n ..."], region: Region
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        name = type(self).__name__
        check_inputs(name, x, bounds=region.bounds)
        parts = []
        with evaluating(model), torch.no_grad():
            graph = checked_graph(model, x)
            for chunk in x.split(self.batch_size):
                lower, upper = [], []
                for method in self.methods:
                    run = run_of(graph, model, chunk, LpBall.of(region), method)
                    low, high = bounds_of(run, None, method)
                    lower.append(low)
                    upper.append(high)
                parts.append((torch.stack(lower).amax(0).cpu(), torch.stack(upper).amin(0).cpu()))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@dataclass(frozen=True, kw_only=True)
class LinearBounds(Intervals):
    """Backward linear bounds, CROWN (Zhang et al., 2018, arXiv:1811.00866; Xu et al., 2020, arXiv:2002.12920).

    The best of interval bounds, of a backward pass over interval bounds inside the model (CROWN-IBP) and of one over
    bounds that have backward passes of their own. Exact on linear models for linf, and for l2 without limits.
    """

    methods: ClassVar[tuple[Method, ...]] = ("IBP", "CROWN-IBP", "CROWN")
