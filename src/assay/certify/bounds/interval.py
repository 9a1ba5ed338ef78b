"""Intervals, and the slack that covers float32 rounding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SLACK = 1e-6  # of the magnitudes that enter an operator: the rounding of a float32 network and of the bounds


@dataclass(frozen=True)
class Interval:
    """lower <= upper, elementwise, of one shape."""

    lower: Tensor
    upper: Tensor

    @property
    def center(self) -> Tensor:
        """The midpoint."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value inside."""
        return self.lower.abs().maximum(self.upper.abs())

    def reshape(self, *shape: int) -> Interval:
        """The same elements in another shape."""
        return Interval(self.lower.reshape(shape), self.upper.reshape(shape))

    def widen(self, by: Tensor | float) -> Interval:
        """The interval with ``by`` added at both ends."""
        return Interval(self.lower - by, self.upper + by)

    def within(self, other: Interval) -> Interval:
        """The intersection; where rounding leaves it empty, the two ends meet."""
        lower = self.lower.maximum(other.lower)
        return Interval(lower, self.upper.minimum(other.upper).maximum(lower))


@dataclass(frozen=True)
class Ball(Interval):
    """The box around an l2 ball: {x' : ||(x' - x) / eps||_2 <= 1}, eps of the same shape, 0 where an element stays."""

    x: Tensor
    eps: Tensor

    def reshape(self, *shape: int) -> Ball:
        """The same elements in another shape."""
        parts = (t.reshape(shape) for t in (self.lower, self.upper, self.x, self.eps))
        return Ball(*parts)
