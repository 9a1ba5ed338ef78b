"""The attack of Carlini and Wagner in l2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.engine import Climb, Memory
from assay.attacks.nearest import NearestAttack


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(NearestAttack):
    """Minimise ||z - x||^2 + c max(-margin, -``kappa``) (Carlini and Wagner, 2017, arXiv:1608.04644, section VI).

    z lies in the bounds by the change of variable z = low + range (tanh(v) + 1) / 2. The ``steps``
    of Adam at ``learning_rate`` are split evenly over ``searches`` rounds, each of which starts again at x. Between
    rounds a sample's c is bisected: it grows tenfold from ``initial`` until some point of a round meets the goal, then
    shrinks where one did and grows where none did. Every point that meets the goal counts, whatever kappa is.
    Shapes, ranges and errors: see Attack; options: see NearestAttack.
    """

    steps: int = 9000
    searches: int = 9
    learning_rate: float = 0.01
    initial: float = 1e-3
    kappa: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts != 1:
            self.refuse("restarts", self.restarts, "1, as all runs start at x")
        if self.searches < 1 or self.steps < self.searches:
            self.refuse("steps, searches", (self.steps, self.searches), "at least one step a round, and one round")
        if not (self.learning_rate > 0 and self.initial > 0 and self.kappa >= 0):
            values = (self.learning_rate, self.initial, self.kappa)
            self.refuse("learning_rate, initial, kappa", values, "> 0, > 0 and >= 0")

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        memory, k = run.memory, run.step % (self.steps // self.searches)
        if run.step == 0:
            zero = torch.zeros_like(run.level)
            memory.update(c=zero + self.initial, low=zero, high=zero + math.inf, hit=torch.zeros_like(run.met))
        memory["hit"] = memory["hit"] | run.met
        if k == 0:
            if run.step:
                self._bisect(memory)
            memory.update(v=self._inverse(run.x), first=torch.zeros_like(run.x), second=torch.zeros_like(run.x))
            if run.step:
                return self._point(memory["v"])
        c = torch.where(run.level < self.kappa, memory["c"], 0)
        slope = 2 * (run.z - run.x) - wide(c, run.x) * run.grad
        memory["v"] = self._adam(memory, slope * (1 - memory["v"].tanh() ** 2) * self._half, k + (run.step == k))
        return self._point(memory["v"])

    def _bisect(self, memory: Memory) -> None:
        """A new c for each sample, from whether some point of the last round met the goal."""
        hit, c = memory["hit"], memory["c"]
        low = torch.where(hit, memory["low"], torch.maximum(memory["low"], c))
        high = torch.where(hit, torch.minimum(memory["high"], c), memory["high"])
        c = torch.where(high.isfinite(), (low + high) / 2, c * 10)
        memory.update(low=low, high=high, c=c, hit=torch.zeros_like(hit))

    def _adam(self, memory: Memory, grad: Tensor, k: int) -> Float[Tensor, "n ..."]:
        memory["first"] = 0.9 * memory["first"] + 0.1 * grad
        memory["second"] = 0.999 * memory["second"] + 0.001 * grad**2
        mean, spread = memory["first"] / (1 - 0.9**k), memory["second"] / (1 - 0.999**k)
        return memory["v"] - self.learning_rate * mean / (spread.sqrt() + 1e-8)

    @property
    def _half(self) -> float:
        return (self.bounds[1] - self.bounds[0]) / 2

    def _point(self, v: Tensor) -> Float[Tensor, "n ..."]:
        return (self.bounds[0] + self._half * (v.tanh() + 1)).clamp_(*self.bounds)

    def _inverse(self, z: Tensor) -> Float[Tensor, "n ..."]:
        edge = 1 - max(1e-6, torch.finfo(z.dtype).eps)
        return (((z - self.bounds[0]) / self._half - 1).clamp(-1, 1) * edge).atanh()
