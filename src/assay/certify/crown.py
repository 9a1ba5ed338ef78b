"""Certified robustness by backward linear relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from assay.certify.base import Region
from assay.certify.bounds.alpha import Alpha
from assay.certify.bounds.checked import tuned
from assay.certify.bounds.graph import Graph
from assay.certify.bounds.module import Method
from assay.certify.bounds.perturbation import LpBall
from assay.certify.ibp import IBP, Specification


@dataclass(frozen=True, kw_only=True)
class CROWN(IBP):
    """As IBP, by linear bounds propagated backward, for balls in ``norm`` "linf" or "l2".

    Zhang et al., 2018, arXiv:1811.00866; on general graphs Xu et al., 2020, arXiv:2002.12920. Tried in turn on what is
    left: interval bounds, a backward pass over them (CROWN-IBP), a backward pass over bounds that have backward passes
    of their own, and with ``alpha_steps`` > 0 as many steps on the slopes (alpha-CROWN, arXiv:2011.13824).
    """

    norm: Literal["linf", "l2"] = "linf"
    alpha_steps: int = 0

    @property
    def methods(self) -> tuple[Method, ...]:  # type: ignore[override]
        """The methods in turn, the cheapest first."""
        plain: tuple[Method, ...] = ("IBP", "CROWN-IBP", "CROWN")
        return (*plain, "alpha-CROWN") if self.alpha_steps else plain

    def lower(self, graph: Graph, model: nn.Module, x: Tensor, C: Specification, method: Method) -> Tensor:
        if method != "alpha-CROWN":
            return super().lower(graph, model, x, C, method)
        return tuned(graph, model, x, LpBall.of(self.region), C, Alpha(steps=self.alpha_steps))

    @property
    def region(self) -> Region:
        return Region(self.norm, self.eps, self.bounds)
