"""Noise that knows nothing: what any protection is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from assay.data import Data
from assay.privacy.unlearnable.base import Protected, Protector
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Protector):
    """A displacement drawn evenly from the ball for each sample. Options: see Protector."""

    def fit(self, data: Data, *, seed: int) -> Protected:
        """The noisy data."""
        self.check(data)
        ball = self.ball()
        moved = data.x + ball.draw(data.x, Draws(seed, "noise", data.index))
        return Protected(data.with_x(ball.project(moved, data.x, data.bounds)))
