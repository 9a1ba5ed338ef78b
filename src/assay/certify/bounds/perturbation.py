"""What may change: sets around an input (or a weight), and the least value of a linear function over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.certify.base import Region
from assay.certify.bounds.interval import Ball, Interval
from assay.certify.bounds.registry import negative, positive
from assay.runtime.errors import InputError


class Perturbation(ABC):
    """A set around each x (n, ...)."""

    independent: bool = False  # a box: every element moves on its own

    @abstractmethod
    def box(self, x: Tensor) -> Interval:
        """The smallest box around the set."""

    def around(self, x: Tensor) -> Interval:
        """What interval bounds start from: the box, with the ball itself where a rule can use it."""
        return self.box(x)

    @abstractmethod
    def least(self, a: Tensor, x: Tensor) -> Tensor:
        """The least a . x' over the set (s, n), for coefficients a (s, n, ...)."""


@dataclass(frozen=True)
class LpBall(Perturbation):
    """All x' with ||(x' - x) / eps||_norm <= 1, norm 1, 2 or infinity, and low <= x' <= high where given.

    ``eps`` >= 0 is a number, or a tensor broadcastable to x with a radius for each element (0: it stays). ``low`` and
    ``high`` are numbers or tensors. The minimum over the ball and the limits together is exact for infinity; for 1 and
    2 it is the larger of the minima over either.
    """

    norm: float = float("inf")
    eps: float | Tensor = 8 / 255
    low: float | Tensor | None = None
    high: float | Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in (1, 2, float("inf")):
            raise InputError(f"LpBall: norm is {self.norm}; expected 1, 2 or infinity")
        eps = torch.as_tensor(self.eps)
        if not (torch.isfinite(eps).all() and (eps >= 0).all()):
            raise InputError("LpBall: eps has values that are negative or not finite; expected numbers >= 0")
        limited = self.low is not None and self.high is not None
        if limited and not (torch.as_tensor(self.low) <= torch.as_tensor(self.high)).all():
            raise InputError("LpBall: low exceeds high; expected low <= high")

    @classmethod
    def of(cls, region: Region) -> LpBall:
        """The ball of a region."""
        low, high = region.bounds if region.bounds is not None else (None, None)
        return cls(2.0 if region.norm == "l2" else float("inf"), region.eps, low, high)

    @property
    def independent(self) -> bool:  # type: ignore[override]
        """Whether the set is a box."""
        return self.norm == float("inf")

    def box(self, x: Tensor) -> Interval:
        return Interval(self._cut(x - self._eps(x)), self._cut(x + self._eps(x)))

    def around(self, x: Tensor) -> Interval:
        box = self.box(x)
        return box if self.norm != 2 else Ball(box.lower, box.upper, x, self._eps(x).expand_as(x))

    def least(self, a: Tensor, x: Tensor) -> Tensor:
        box = self.box(x)
        inside = (positive(a) * box.lower + negative(a) * box.upper).flatten(2).sum(2)
        if self.independent:
            return inside
        scaled = (a * self._eps(x)).flatten(2)
        dual = scaled.abs().amax(2) if self.norm == 1 else scaled.norm(dim=2)
        return torch.maximum((a * x).flatten(2).sum(2) - dual, inside)

    def _eps(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)

    def _cut(self, x: Tensor) -> Tensor:
        limits = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device) if v is not None else None for v in (self.low, self.high)
        )
        low, high = limits
        x = x if low is None else x.maximum(low)
        return x if high is None else x.minimum(high)
