"""Virtual."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.online.base import OnlinePicker, Stream


@dataclass(frozen=True, kw_only=True)
class Virtual(OnlinePicker):
    """Pick what exceeds the k-th largest value seen so far, if that one was sampled (Babaioff et al., 2007).

    Every such value enters the references, picked or not. The ratio tends to 1 / e for every k with t = n / e, and is
    ``virtual_ratio`` exactly. The default threshold is 0.38 n, as in the code of arXiv:2103.02014. A missing reference
    counts as sampled. Shapes, ties, errors: see OnlinePicker.
    """

    def default_threshold(self) -> int:
        """0.38 n, rounded down."""
        return math.floor(0.38 * self.n)

    def wants(self, stream: Stream, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        return (values > stream.best[:, -1]) & (stream.arrival[:, -1] < self.t)
