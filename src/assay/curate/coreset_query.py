"""Points that cover the pool."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from assay.curate.gains import margin_gains
from assay.curate.query import Pool, Query, QuerySampler
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

BLOCK = 512  # points whose distances to all labelled ones are held at once


@dataclass(frozen=True, kw_only=True)
class CoresetQuery(QuerySampler):
    """Greedy k-center (Sener & Savarese, 2018, arXiv:1708.00489, algorithm 1): each point is the one farthest from all
    labelled and chosen ones, by Euclidean distance of the features.

    Without labelled points the first is random. The largest distance left is at most twice the best possible. Errors:
    see QuerySampler; a pool without features, labelled ones of another width, and values that are not finite.
    """

    def select(self, pool: Pool, b: int, *, seed: int) -> Query:
        """The farthest points, one after the other."""
        self.check(pool, b)
        margin_gains(pool.probs)
        features = self._features(pool)
        if pool.labelled is not None and len(pool.labelled):
            known = pool.labelled.double()
            near = partial(torch.cdist, x2=known, compute_mode="donot_use_mm_for_euclid_dist")
            distance = torch.cat([near(part).amin(1) for part in features.split(BLOCK)])
        else:
            distance = torch.rand(len(features), generator=torch_rng(seed, "coreset"), dtype=torch.float64) + torch.inf
        rows: list[int] = []
        while len(rows) < b:
            rows.append(self._farthest(distance, seed, len(rows)))
            distance = torch.minimum(distance, (features - features[rows[-1]]).norm(dim=1))
            distance[rows[-1]] = -1.0
        return Query(torch.tensor(rows).sort().values, torch.ones(b, dtype=torch.float64))

    def _farthest(self, distance: Tensor, seed: int, turn: int) -> int:
        ties = (distance == distance.max()).nonzero()[:, 0]
        if len(ties) == 1:
            return int(ties[0])
        return int(ties[torch.randint(len(ties), (1,), generator=torch_rng(seed, "coreset", turn))])

    def _features(self, pool: Pool) -> Tensor:
        features, labelled = pool.features, pool.labelled
        good = features is not None and features.dim() == 2 and len(features) == len(pool)
        if features is None or not good or (labelled is not None and labelled.shape[1:] != features.shape[1:]):
            shapes = [None if t is None else tuple(t.shape) for t in (features, labelled)]
            raise InputError(f"CoresetQuery: features {shapes[0]}, labelled {shapes[1]}; expected (n, d) and (k, d)")
        if not all(torch.isfinite(t).all() for t in (features, labelled) if t is not None):
            raise InputError("CoresetQuery: features hold NaN or infinite values; expected finite")
        return features.double()
