"""The hybrid of directional attacks and covering direct search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assay.decide.attack_search import AttackSearch
from assay.decide.direct_search import Walk


@dataclass(frozen=True, kw_only=True)
class HybridAttackSearch(AttackSearch):
    """Attack steps while they succeed, an iteration of cDSM where one fails (Bouchet, Vidal, 2025, arXiv:2510.01461).

    Attacks give fast early progress; the covering and polling of ``cdsm`` keep the search from getting stuck, and end
    it: where sigma < ``cdsm.tol``, or with the budget ``cdsm.max_evals``. Arguments, options and charges are those of
    AttackSearch; ``OptResult.successes`` tells how often each step moved the incumbent. Raises InputError for an
    infeasible x0.
    """

    kind: ClassVar[str] = "function"

    def otherwise(self, walk: Walk) -> bool:
        self.cdsm.iterate(walk)
        return walk.sigma >= self.cdsm.tol
