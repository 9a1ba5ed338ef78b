"""Single-Ref."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.online.base import OnlinePicker, Stream
from assay.runtime.errors import InputError

# Share of the stream that is sampled, by k (Albers and Ladewig, 2019, table 1).
SHARES = dict(
    enumerate(
        (0.3678, 0.2545, 0.3475, 0.2928, 0.2525, 0.2217, 0.2800, 0.2549, 0.2338, 0.2159,
         0.2570, 0.2410, 0.2267, 0.2140, 0.2026, 0.1924, 0.2231, 0.2133, 0.2042, 0.1959),
        start=1,
    ),
) | {100: 0.1331}  # fmt: skip
# The largest k for which the rank is 1, 2, ... 15.
RANK_ENDS = (2, 6, 10, 16, 22, 28, 35, 42, 50, 58, 67, 76, 85, 95, 100)


@dataclass(frozen=True, kw_only=True)
class SingleRef(OnlinePicker):
    """Pick what exceeds the ``rank``-th largest sampled value (Albers and Ladewig, 2019, "New results for the
    k-secretary problem", ISAAC).

    Defaults by k: their table for rank (k <= 100) and for the threshold, floor(c n) + 1 with c(k) for k <= 20 and 100.
    Outside the table, c and the rank r are tied by (1 - c) r = c k, so that k later values are expected above the
    reference: c = r / (r + k) for 20 < k < 100, and r = round(c k / (1 - c)) at c(100) for k > 100. Shapes, ties: see
    OnlinePicker. Raises InputError unless 1 <= rank <= k.
    """

    learns: ClassVar[bool] = False

    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.r <= self.k:
            raise InputError(f"SingleRef: rank={self.rank}; expected 1 <= rank <= k={self.k}")

    @property
    def r(self) -> int:
        """Which sampled value is the reference, 1 for the largest."""
        if self.rank is not None:
            return self.rank
        if self.k > RANK_ENDS[-1]:
            return round(SHARES[100] * self.k / (1 - SHARES[100]))
        return 1 + sum(end < self.k for end in RANK_ENDS)

    def default_threshold(self) -> int:
        """floor(c n) + 1, at most n."""
        share = SHARES.get(min(self.k, 100), self.r / (self.r + self.k))
        return min(math.floor(share * self.n) + 1, self.n)

    def wants(self, stream: Stream, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        return values > stream.best[:, self.r - 1]
