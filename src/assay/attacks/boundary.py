"""The boundary attack: a decision-based random walk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import L2
from assay.attacks.base import Goal
from assay.attacks.queries import Probe, QueryAttack, Search, bisect, segment, starting_point

BLOCK = 32  # noise drawn at once


@dataclass(frozen=True, kw_only=True)
class BoundaryAttack(QueryAttack):
    """Walks along the boundary and towards x by rejection sampling (Brendel et al., 2018, arXiv:1712.04248, alg. 1).

    Each step draws a normal direction, moves ``spherical`` times the distance on the sphere around x, and where that
    meets the goal ``source`` times the distance towards x; it stays where the second point meets the goal too. After
    ``window`` trials of either kind their length grows by ``adaptation`` where more than half met the goal (of the
    second kind a quarter), and shrinks by it below a fifth (a tenth). It starts at ``start`` (given to ``run``) or at
    uniform noise that meets the goal, brought to the boundary by bisection to within ``tol`` of the way.
    """

    norm: ClassVar[Literal["l2"]] = "l2"

    steps: int = 25_000
    spherical: float = 0.01
    source: float = 0.01
    adaptation: float = 1.5
    window: int = 10
    tol: float = 1e-3
    budget: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.window < 1 or self.adaptation <= 1:
            self.refuse(
                "steps, window, adaptation", (self.steps, self.window, self.adaptation), ">= 1, >= 1 and above 1"
            )
        if min(self.spherical, self.source, self.tol) <= 0:
            self.refuse("spherical, source, tol", (self.spherical, self.source, self.tol), "all > 0")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return L2(0.0).norm(delta)

    def explore(self, probe: Probe, goal: Goal) -> Search:
        probe.x = probe.x.contiguous()  # sums depend on the order in memory
        met, _ = yield from probe.ask(probe.x[None])
        if bool(met[0]):
            return
        z = yield from starting_point(probe, self.bounds)
        z = (yield from bisect(probe, z.contiguous(), segment, self.tol)).contiguous()
        spherical = Length(self.spherical, 0.2, 0.5, self)
        source = Length(self.source, 0.1, 0.25, self)
        noise = self._noise(probe)
        for _ in range(self.steps):
            around = self._around(probe, z, next(noise), spherical.value)
            met, _ = yield from probe.ask(around[None])
            spherical.learn(bool(met[0]))
            if not bool(met[0]):
                continue
            nearer = self._nearer(probe, z, around, source.value)
            met, _ = yield from probe.ask(nearer[None])
            source.learn(bool(met[0]))
            if bool(met[0]):
                z = nearer

    def _noise(self, probe: Probe) -> Iterator[Tensor]:
        while True:
            yield from probe.draws.normal(BLOCK, *probe.x.shape)[0].to(probe.x)

    def _around(self, probe: Probe, z: Tensor, noise: Tensor, length: float) -> Tensor:
        """The point ``length`` radii from ``z`` towards ``noise``, on the sphere around x through z, clipped."""
        ray = z - probe.x
        radius = ray.norm()
        noise = noise - (noise * ray).sum() / radius.square().clamp_min(1e-30) * ray
        ray = ray + length * radius * noise / noise.norm().clamp_min(1e-30)
        return (probe.x + ray / math.sqrt(1 + length**2)).clamp(*self.bounds)

    def _nearer(self, probe: Probe, z: Tensor, around: Tensor, length: float) -> Tensor:
        """``around`` moved towards x, to ``length`` radii less than the distance of ``z``."""
        ray = around - probe.x
        goal = (1 - min(length, 1.0)) * (z - probe.x).norm()
        return probe.x + ray * (goal / ray.norm().clamp_min(1e-30)).clamp_max(1)


class Length:
    """A step's length, which follows how often steps of it meet the goal."""

    def __init__(self, value: float, low: float, high: float, attack: BoundaryAttack) -> None:
        self.value, self.low, self.high, self.attack = value, low, high, attack
        self.met, self.tried = 0, 0

    def learn(self, met: bool) -> None:
        """Count a trial; after a window of them, lengthen or shorten."""
        self.met, self.tried = self.met + met, self.tried + 1
        if self.tried < self.attack.window:
            return
        rate = self.met / self.tried
        if rate > self.high:
            self.value *= self.attack.adaptation
        elif rate < self.low:
            self.value /= self.attack.adaptation
        self.met, self.tried = 0, 0
