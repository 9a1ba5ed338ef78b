"""Certified robustness by backward linear relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.certify.base import Region
from assay.certify.bounds.module import Method
from assay.certify.ibp import IBP


@dataclass(frozen=True, kw_only=True)
class CROWN(IBP):
    """As IBP, by linear bounds propagated backward, for balls in ``norm`` "linf" or "l2".

    Zhang et al., 2018, arXiv:1811.00866; on general graphs Xu et al., 2020, arXiv:2002.12920. Tried in turn on what is
    left: interval bounds, a backward pass over them (CROWN-IBP), a backward pass over bounds that have backward passes
    of their own. ``bounds`` must be None for exact l2 balls; with limits the better of ball and box is used.
    """

    methods: ClassVar[tuple[Method, ...]] = ("IBP", "CROWN-IBP", "CROWN")

    norm: Literal["linf", "l2"] = "linf"

    @property
    def region(self) -> Region:
        return Region(self.norm, self.eps, self.bounds)
