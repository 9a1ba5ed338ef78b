"""The most uncertain points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.curate.gains import GAINS, Gain, check_gain
from assay.curate.query import Pool, Query, QuerySampler
from assay.curate.subsets import ranking


@dataclass(frozen=True, kw_only=True)
class UncertaintyQuery(QuerySampler):
    """The ``b`` points of highest gain: margin sampling (Balcan et al., 2007), entropy or least confidence (Lewis &
    Gale, 1994). Ties are broken at random. Errors: see QuerySampler; an unknown gain.
    """

    gain: Gain = "margin"

    def __post_init__(self) -> None:
        check_gain(type(self).__name__, self.gain)

    def select(self, pool: Pool, b: int, *, seed: int) -> Query:
        """The top of the ranking."""
        self.check(pool, b)
        rows = ranking(GAINS[self.gain](pool.probs), seed=seed)[:b].sort().values
        return Query(rows, torch.ones(b, dtype=torch.float64))
