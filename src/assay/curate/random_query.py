"""Points at random: the baseline of every query sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.curate.gains import margin_gains
from assay.curate.query import Pool, Query, QuerySampler
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class RandomQuery(QuerySampler):
    """``b`` points uniformly at random, without replacement. Errors: see QuerySampler."""

    def select(self, pool: Pool, b: int, *, seed: int) -> Query:
        """The first ``b`` of a random order."""
        self.check(pool, b)
        n = len(margin_gains(pool.probs))  # for its checks: bad probabilities are refused here as elsewhere
        rows = torch.randperm(n, generator=torch_rng(seed, "random query"))[:b].sort().values
        return Query(rows, torch.full((b,), b / n, dtype=torch.float64))
