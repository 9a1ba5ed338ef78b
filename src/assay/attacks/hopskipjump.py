"""HopSkipJump: a decision-based minimum-norm attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import L2, Linf
from assay.attacks.base import Goal
from assay.attacks.queries import Blending, Probe, QueryAttack, Search, bisect, segment, starting_point


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(QueryAttack):
    """Walks along the boundary by a gradient direction estimated from decisions (Chen et al., 2020, arXiv:1904.02144).

    Each iteration of algorithm 2: estimate the direction at the boundary from ``initial`` * sqrt(t) random probes
    (eq. 9, with the baseline of eq. 16), take the longest step distance / sqrt(t) / 2**k that still meets the goal, and
    bisect back to the boundary to within theta = ``gamma`` / d**1.5 (l2) or gamma / d**2 (linf). ``norm`` is the
    distance made small. It starts at ``start`` (given to ``run``) or at uniform noise that meets the goal.
    """

    norm: Literal["l2", "linf"] = "l2"
    steps: int = 64
    initial: int = 100
    gamma: float = 1.0
    budget: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("l2", "linf"):
            self.refuse("norm", repr(self.norm), "'l2' or 'linf'")
        if self.steps < 1 or self.initial < 2 or self.gamma <= 0:
            self.refuse("steps, initial, gamma", (self.steps, self.initial, self.gamma), ">= 1, >= 2 and > 0")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return (L2 if self.norm == "l2" else Linf)(0.0).norm(delta)

    def explore(self, probe: Probe, goal: Goal) -> Search:
        met, _ = yield from probe.ask(probe.x[None])
        if bool(met[0]):
            return
        z = yield from starting_point(probe, self.bounds)
        z = yield from self._to_boundary(probe, z)
        d = probe.x.numel()
        for t in range(1, self.steps + 1):
            distance = self._distance(probe, z)
            # Section 3.3: the radius sqrt(d) theta ||z - x||_2, or d theta ||z - x||_inf; a wide first one.
            radius = self.gamma * distance / d if t > 1 else 0.1 * (self.bounds[1] - self.bounds[0])
            m = min(round(self.initial * math.sqrt(t)), probe.left)
            if m < 2:
                return
            direction = yield from self._direction(probe, z, radius, m)
            z = yield from self._step(probe, z, direction, distance / math.sqrt(t))
            z = yield from self._to_boundary(probe, z)

    def _distance(self, probe: Probe, z: Tensor) -> float:
        return float(self.measure((z - probe.x)[None])[0])

    def _to_boundary(self, probe: Probe, z: Tensor) -> Blending:
        d = probe.x.numel()
        if self.norm == "l2":
            return (yield from bisect(probe, z, segment, self.gamma / d**1.5))
        distance, theta = self._distance(probe, z), self.gamma / d**2
        return (yield from bisect(probe, z, _clip, theta * min(1.0, distance), distance))

    def _direction(self, probe: Probe, z: Tensor, radius: float, m: int) -> Blending:
        """Monte-Carlo estimate of the boundary's normal at ``z`` from ``m`` decisions."""
        draw = probe.draws.normal if self.norm == "l2" else probe.draws.uniform
        u = draw(m, *z.shape)[0].to(z)
        u = u if self.norm == "l2" else 2 * u - 1
        u = u / u.flatten(1).norm(dim=1).reshape(-1, *[1] * z.dim())
        points = (z + radius * u).clamp_(*self.bounds)
        u = (points - z) / radius
        met, _ = yield from probe.ask(points)
        sign = met.to(z) * 2 - 1
        mean = sign.mean()
        weights = sign if float(mean.abs()) == 1.0 else sign - mean
        g = torch.tensordot(weights, u, dims=1) / m
        return g.sign() if self.norm == "linf" else g / g.norm().clamp_min(1e-12)

    def _step(self, probe: Probe, z: Tensor, direction: Tensor, length: float) -> Blending:
        """The longest of the steps length / 2**k along ``direction`` that meets the goal; ``z`` where none does."""
        for _ in range(24):
            point = (z + length * direction).clamp_(*self.bounds)
            met, _ = yield from probe.ask(point[None])
            if bool(met[0]):
                return point
            length /= 2
        return z


def _clip(x: Tensor, outside: Tensor, t: float) -> Tensor:
    return x + (outside - x).clamp(-t, t)
