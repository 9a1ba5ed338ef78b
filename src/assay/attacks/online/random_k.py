"""Random picks: the floor that every rule has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.online.base import OnlinePicker, Stream
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class RandomK(OnlinePicker):
    """k items of the stream (after ``threshold`` of them, by default none), every set as likely; values do not matter.

    Each item is taken with probability (picks left) / (items left): algorithm S (Knuth, 1969, section 3.4.2). Run i
    draws by (``seed``, i), whatever the number of runs. Shapes and errors: see OnlinePicker.
    """

    learns: ClassVar[bool] = False

    seed: int = 0

    def default_threshold(self) -> int:
        """0: nothing is sampled."""
        return 0

    def wants(self, stream: Stream, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        draws = Draws(self.seed, f"RandomK/{stream.count}", torch.arange(stream.runs))
        return draws.uniform() * (self.n - stream.count) < self.k - stream.picks
