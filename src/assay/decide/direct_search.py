"""What direct searches share: a counted objective behind an extreme barrier, the incumbent, and their result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import AssayError, InputError

Box = tuple[Tensor, Tensor]
Point = Float[np.ndarray, " n"]


class Spent(AssayError):
    """The budget does not cover what a search asks next; its run ends."""


@dataclass(frozen=True)
class OptResult:
    """Where a search ended: ``x`` (n,) float64 and its ``value``; always feasible, as x0 is.

    ``evals``: evaluations spent, charged gradients included. ``history`` (k, 2): evaluations and value, one row an
    improvement, values rising. ``successes``: by step ("attack", "cover", "poll"), how often it moved the incumbent.
    ``gradients``: gradient evaluations, a part of ``evals``.
    """

    x: Float[Tensor, " n"]
    value: float
    evals: int
    history: Float[Tensor, "k 2"]
    successes: dict[str, int]
    gradients: int = 0

    def at(self, evals: int) -> float:
        """The best value after so many evaluations (at least 1)."""
        if evals < 1:
            raise InputError(f"OptResult: value after {evals} evaluations; expected at least 1")
        return float(self.history[self.history[:, 0] <= evals][-1, 1])


@dataclass(frozen=True)
class Frame:
    """Variables scaled so that the box is [0, 1]^n; without a box they are as given."""

    low: Point
    span: Point
    boxed: bool
    high: Point | float = math.inf

    @classmethod
    def of(cls, where: str, x0: Tensor, bounds: Box | None) -> Frame:
        """The frame of a box (low (n,), high (n,)), checked together with the start."""
        if not isinstance(x0, Tensor) or x0.dim() != 1 or not len(x0) or not torch.isfinite(x0).all():
            raise InputError(f"{where}: x0 is not a finite tensor of shape (n,) with n >= 1")
        if bounds is None:
            return cls(np.zeros(len(x0)), np.ones(len(x0)), False)
        box = [torch.as_tensor(b, dtype=torch.float64) for b in bounds]
        if len(box) != 2 or any(b.shape not in ((), (1,), x0.shape) for b in box):
            shapes = ", ".join(str(tuple(b.shape)) for b in box)
            raise InputError(f"{where}: bounds of shapes {shapes}; expected low and high, numbers or ({len(x0)},) each")
        low, high = (b.expand(len(x0)).numpy() for b in box)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise InputError(f"{where}: bounds are not finite with low < high in every coordinate")
        return cls(low, high - low, True, high)

    def inward(self, x: Tensor) -> Point:
        """The scaled coordinates of x."""
        return (x.detach().double().cpu().numpy() - self.low) / self.span

    def outward(self, z: Point) -> Float[Tensor, " n"]:
        """The point of scaled coordinates z; the rounding of low + span does not take it out of the box."""
        return torch.from_numpy(np.minimum(self.low + self.span * z, self.high))

    def inside(self, z: Point) -> bool:
        """Whether z is finite and in the box."""
        return bool(np.isfinite(z).all() and (not self.boxed or ((z >= 0) & (z <= 1)).all()))

    def clip(self, z: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
        """z brought into the box."""
        return z.clip(0, 1) if self.boxed else z


@dataclass
class Walk:
    """One run: the incumbent ``z`` (scaled) and its ``value``, the points seen, and what was spent.

    The barrier gives -inf to points outside the box, without an evaluation, and to values that are not finite. A
    point seen before is not evaluated again. A candidate at step length s is accepted where it is better than the
    incumbent by more than ``increase`` s^2.
    """

    function: Callable[[Tensor], float]
    frame: Frame
    budget: int
    increase: float
    rng: np.random.Generator
    z: Point
    sigma: float = 0.0
    radius: float = 0.0
    value: float = -math.inf
    evals: int = 0
    gradients: int = 0
    heading: Point | None = None
    basis: Float[np.ndarray, "k n"] | None = None
    seen: dict[bytes, float] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    successes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("attack", "cover", "poll"), 0))

    def __post_init__(self) -> None:
        self.points = np.empty((self.budget, len(self.z)))
        self.value = self.evaluate(self.z)
        if self.value == -math.inf:
            raise InputError(
                "direct search: the start is infeasible or its value is not finite; expected a feasible x0"
            )
        self.history.append((self.evals, self.value))

    def charge(self, count: int) -> None:
        """Spend ``count`` evaluations on gradients."""
        if self.evals + count > self.budget:
            raise Spent(f"{self.budget - self.evals} evaluations are left, {count} more asked")
        self.evals += count
        self.gradients += count

    def evaluate(self, z: Point) -> float:
        """The barrier's value at z."""
        if not self.frame.inside(z):
            return -math.inf
        key = z.tobytes()
        if key not in self.seen:
            if self.evals >= self.budget:
                raise Spent("no evaluation is left")
            value = float(self.function(self.frame.outward(z)))
            self.points[len(self.seen)] = z
            self.seen[key] = value if math.isfinite(value) else -math.inf
            self.evals += 1
        return self.seen[key]

    def offer(self, z: Point, step: float, by: str) -> bool:
        """Move to z where it is better by enough."""
        value = self.evaluate(z)
        if not value > self.value + self.increase * step**2:
            return False
        self.heading, self.z, self.value = z - self.z, z, value
        self.history.append((self.evals, value))
        self.successes[by] += 1
        return True

    def result(self) -> OptResult:
        """The run's result."""
        history = torch.tensor(self.history, dtype=torch.float64)
        x = self.frame.outward(self.z)
        return OptResult(x, self.value, self.evals, history, dict(self.successes), self.gradients)
