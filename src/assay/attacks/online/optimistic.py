"""Optimistic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.online.base import OnlinePicker, Stream


@dataclass(frozen=True, kw_only=True)
class Optimistic(OnlinePicker):
    """Pick what exceeds the smallest sampled reference that is left, and use that one up (Babaioff et al., 2007).

    The thresholds rise with each pick: the k-th largest sampled value, then the (k-1)-th, and so on. The code of
    arXiv:2103.02014 drops two references a pick; the rule of its text is followed here. Shapes, ties, errors: see
    OnlinePicker.
    """

    learns: ClassVar[bool] = False

    def wants(self, stream: Stream, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        left = (self.k - 1 - stream.picks).clamp_min(0)
        return values > stream.best.gather(1, left[:, None])[:, 0]
