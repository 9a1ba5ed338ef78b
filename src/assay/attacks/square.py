"""Square attack: random search with square-shaped changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import Linf
from assay.attacks.base import OBJECTIVES, Goal, Untargeted
from assay.attacks.queries import Probe, QueryAttack, Search
from assay.runtime.errors import InputError
from assay.subject.access import Access

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, section 3.2
BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Square(QueryAttack):
    """Score-based random search in an l-infinity ball (Andriushchenko et al., 2020, arXiv:1912.00049, algorithms 1, 2).

    Starts from vertical stripes of +-eps; each query sets a random square, one sign a channel, and keeps it where the
    objective grows. ``p`` is the share of pixels in the first squares and is halved as the budget is spent. The
    objective is the margin, for targets the cross-entropy (section 3.1). A sample stops at the first point
    that meets the goal. x is images (n, c, h, w).
    """

    access: ClassVar[Access] = Access.SCORE
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    ball: Linf = Linf(8 / 255)
    p: float = 0.05
    budget: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, Linf):
            self.refuse("ball", repr(self.ball), "Linf(eps)")
        if not 0 < self.p <= 1:
            self.refuse("p", self.p, "a share of the pixels in (0, 1]")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta)

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return OBJECTIVES["margin" if isinstance(goal, Untargeted) else "ce"](logits, goal)

    def explore(self, probe: Probe, goal: Goal) -> Search:
        x, eps = probe.x, self.ball.eps
        if x.dim() != 3:
            raise InputError(f"Square: a sample has shape {tuple(x.shape)}; expected an image (c, h, w)")
        met, _ = yield from probe.ask(x[None])
        if bool(met[0]):
            return
        c, h, w = x.shape
        z = (x + eps * probe.draws.signs(c, 1, w)[0].to(x)).clamp_(*self.bounds)
        met, best = yield from probe.ask(z[None])
        probe.last = z
        for i in range(self.budget):
            if bool(met[0]):
                return
            if i % BLOCK == 0:
                corners = probe.draws.uniform(BLOCK, 2)[0].tolist()
                signs = probe.draws.signs(BLOCK, c, 1, 1)[0].to(x)
            side = self._side(i, h, w)
            top, left = (int(u * (n - side + 1)) for u, n in zip(corners[i % BLOCK], (h, w), strict=True))
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            patch = (x[window] + eps * signs[i % BLOCK]).clamp_(*self.bounds)
            if patch.equal(z[window]):
                continue
            candidate = z.clone()
            candidate[window] = patch
            met, value = yield from probe.ask(candidate[None])
            if bool(met[0]) or bool(value > best):
                z, best = candidate, value
                probe.last = z

    def _side(self, i: int, h: int, w: int) -> int:
        """The side of the square at query ``i``."""
        halved = sum(i * 10_000 / self.budget > k for k in HALVINGS)
        return min(max(round(math.sqrt(self.p / 2**halved * h * w)), 1), h, w)
