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

TINY = 1e-30


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
    """All x' with ||(x' - x) / eps||_norm <= 1, norm 0, 1, 2 or infinity, and low <= x' <= high where given.

    ``eps`` >= 0 is a number, or for the norms 1 and more a tensor broadcastable to x with a radius for each element (0:
    it stays). Norm 0 changes at most ``eps`` elements, anywhere between ``low`` and ``high``, which it needs. The
    minimum of a linear function over ball and limits together is exact for every norm; x lies within the limits.
    """

    norm: float = float("inf")
    eps: float | Tensor = 8 / 255
    low: float | Tensor | None = None
    high: float | Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in (0, 1, 2, float("inf")):
            raise InputError(f"LpBall: norm is {self.norm}; expected 0, 1, 2 or infinity")
        eps = torch.as_tensor(self.eps)
        if not (torch.isfinite(eps).all() and (eps >= 0).all()):
            raise InputError("LpBall: eps has values that are negative or not finite; expected numbers >= 0")
        limited = self.low is not None and self.high is not None
        if limited and not (torch.as_tensor(self.low) <= torch.as_tensor(self.high)).all():
            raise InputError("LpBall: low exceeds high; expected low <= high")
        if self.norm == 0 and (self.low is None or self.high is None or eps.dim()):
            raise InputError("LpBall: norm 0 without limits, or with several eps; expected low, high and one number")

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
        if self.norm == 0:
            spread = torch.full_like(x, torch.inf if float(self.eps) >= 1 else 0.0)
            return Interval(self._cut(x - spread), self._cut(x + spread))
        return Interval(self._cut(x - self._eps(x)), self._cut(x + self._eps(x)))

    def around(self, x: Tensor) -> Interval:
        box = self.box(x)
        return box if self.norm != 2 else Ball(box.lower, box.upper, x, self._eps(x).expand_as(x))

    def least(self, a: Tensor, x: Tensor) -> Tensor:
        box = self.box(x)
        if self.independent:
            return (positive(a) * box.lower + negative(a) * box.upper).flatten(2).sum(2)
        room = torch.where(a > 0, x - box.lower, box.upper - x).flatten(2)  # how far each element may go downhill
        slope = a.abs().flatten(2)
        return (a * x).flatten(2).sum(2) - self._gain(slope, room, self._eps(x).expand_as(x).flatten(1))

    def _gain(self, slope: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        """The largest slope . t over 0 <= t <= room with ||t / eps|| <= 1, (s, n)."""
        if self.norm == 0:
            return _largest(slope * room, int(self.eps))
        if self.norm == 1:
            return _fractional(slope * eps, torch.where(eps > 0, room / eps.clamp(min=TINY), 0.0))
        if self.low is None and self.high is None:
            return (slope * eps).norm(dim=2)
        return _rounded(slope * eps, torch.where(eps > 0, room / eps.clamp(min=TINY), 0.0))

    def _eps(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)

    def _cut(self, x: Tensor) -> Tensor:
        limits = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device) if v is not None else None for v in (self.low, self.high)
        )
        low, high = limits
        x = x if low is None else x.maximum(low)
        return x if high is None else x.minimum(high)


def _largest(gains: Tensor, count: int) -> Tensor:
    """The sum of the ``count`` largest gains >= 0 of each row."""
    return gains.topk(min(count, gains.shape[-1]), dim=-1).values.clamp(min=0).sum(-1)


def _fractional(gain: Tensor, room: Tensor) -> Tensor:
    """max gain . t over 0 <= t <= room, sum t <= 1: the steepest elements first, as far as they go."""
    gain, order = gain.sort(dim=-1, descending=True)
    room = room.expand_as(gain).gather(-1, order)
    spent = room.cumsum(-1)
    return (gain * (room - (spent - 1).clamp(min=0)).clamp(min=0)).sum(-1)


def _rounded(gain: Tensor, room: Tensor) -> Tensor:
    """max gain . t over 0 <= t <= room, ||t||_2 <= 1.

    t = min(room, gain / m) for a multiplier m >= 0. Elements reach their room in the order of room / gain: with the
    first k of them there, m^2 = (sum of the other gain^2) / (1 - sum of these room^2). The bound of the dual problem,
    gain . t - m / 2 (||t||^2 - 1), is at least the maximum for any m, so rounding cannot make it unsound.
    """
    room = room.expand_as(gain)
    ratio = torch.where(gain > 0, room / gain.clamp(min=TINY), torch.inf)
    order = ratio.argsort(dim=-1)
    ratio, full, rest = ratio.gather(-1, order), room.gather(-1, order) ** 2, gain.gather(-1, order) ** 2
    left = 1 - (full.cumsum(-1) - full)  # of the norm, before element k has reached its room
    tail = rest.flip(-1).cumsum(-1).flip(-1)  # gain^2 of element k and those after it
    inverse = torch.where(left > 0, left.clamp(min=0) / tail.clamp(min=TINY), torch.inf).sqrt()  # 1 / m
    fits = (inverse <= ratio) & (left > 0) & (tail > TINY)
    k = fits.int().argmax(-1, keepdim=True)
    step = torch.where(fits.any(-1, keepdim=True), inverse.gather(-1, k), torch.inf)
    t = torch.minimum(room, torch.where(gain > 0, gain * step, 0.0))
    m = torch.where(torch.isfinite(step), 1 / step.clamp(min=TINY), 0.0)[..., 0]
    return (gain * t).sum(-1) - m / 2 * ((t**2).sum(-1) - 1)


@dataclass(frozen=True)
class SynonymSet(Perturbation):
    """Sequences in which at most ``budget`` positions are replaced by one of their substitutes (Xu et al., 2020, B).

    x (n, t, d) holds the vectors of the words, ``substitutes`` (n, t, m, d) those that each position may take and
    ``valid`` (n, t, m) which of them exist. The paper's recursion over positions and replacements spent,
    D[i][j] = opt(D[i-1][j] + a_i x_i, D[i-1][j-1] + opt_w a_i w), has a closed form, since positions differ only in
    what a replacement gains: the ``budget`` largest gains are taken.
    """

    substitutes: Tensor
    valid: Tensor
    budget: int

    def __post_init__(self) -> None:
        if self.substitutes.dim() != 4 or self.valid.shape != self.substitutes.shape[:3] or self.budget < 0:
            raise InputError(
                f"SynonymSet: substitutes {tuple(self.substitutes.shape)}, valid {tuple(self.valid.shape)}, "
                f"budget {self.budget}; expected (n, t, m, d), (n, t, m) and budget >= 0"
            )

    def box(self, x: Tensor) -> Interval:
        words, valid = self._words(x), self.valid[..., None]
        low = torch.where(valid, words, torch.inf).amin(2).minimum(x)
        high = torch.where(valid, words, -torch.inf).amax(2).maximum(x)
        return Interval(low, high) if self.budget else Interval(x, x)

    def least(self, a: Tensor, x: Tensor) -> Tensor:
        kept = (a * x).sum(3)  # (s, n, t)
        other = torch.einsum("sntd,ntmd->sntm", a, self._words(x))
        gain = kept - torch.where(self.valid, other, torch.inf).amin(3)
        return kept.sum(2) - _largest(gain.clamp(min=0), self.budget)

    def _words(self, x: Tensor) -> Tensor:
        if self.substitutes.shape[:2] != x.shape[:2] or self.substitutes.shape[3] != x.shape[2]:
            raise InputError(f"SynonymSet: x has shape {tuple(x.shape)}; expected that of the substitutes' positions")
        return self.substitutes.to(x)
