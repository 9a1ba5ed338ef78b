"""Covering direct search: a derivative-free search that also finds local optima of discontinuous functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from assay.decide.direct_search import Box, Frame, OptResult, Spent, Walk
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng


@dataclass(frozen=True, kw_only=True)
class CDSM:
    """Covering direct search, the derivative-free half of Bouchet and Vidal (2025, arXiv:2510.01461, section 4).

    ``maximize(f, x0, bounds, seed=0)``: f takes a float64 tensor (n,) and gives a number, -inf or NaN where x is
    infeasible; x0 (n,) is feasible; ``bounds`` (low, high), or None. In variables scaled to [0, 1], an iteration

    1. covers: of ``cover_candidates`` uniform points in the ball of ``cover_radius`` around the incumbent, evaluates
       the one farthest from all points seen, so that the ball gets ever more densely covered;
    2. polls: x +- sigma q over the columns q of a random Householder basis, those closest to the last move first, until
       one is accepted: better by more than ``increase`` sigma^2. Points beyond the box are clipped to it.

    A success doubles sigma, up to ``sigma_max``, a failure halves it; the run ends where sigma < ``tol``, the budget
    ``max_evals`` is spent or ``target`` is reached. ``poll_directions`` polls a random part of the basis (a
    deviation for many variables; None: all), ``cover=False`` leaves step 1 out, ``rotate=False`` polls the same
    random basis always. The constants and the choice of the covering point follow a reconstruction from the
    literature on direct search; the paper's own were not at hand. Raises InputError for an infeasible x0.
    """

    kind: ClassVar[str] = "function"

    sigma0: float = 0.25
    sigma_max: float = 1.0
    increase: float = 1e-4
    cover_radius: float = 0.5
    cover_candidates: int = 100
    cover: bool = True
    rotate: bool = True
    poll_directions: int | None = None
    tol: float = 1e-6
    max_evals: int = 2000

    def __post_init__(self) -> None:
        lengths = (self.sigma0, self.sigma_max, self.cover_radius, self.tol)
        if not all(math.isfinite(v) and v > 0 for v in lengths) or self.increase < 0:
            raise InputError(f"CDSM: lengths {lengths}, increase {self.increase}; expected > 0 and >= 0")
        directions = 1 if self.poll_directions is None else self.poll_directions
        counts = (self.cover_candidates, self.max_evals, directions)
        if min(counts) < 1:
            raise InputError(f"CDSM: cover_candidates, max_evals, poll_directions are {counts}; expected >= 1")

    def maximize(
        self,
        f: Callable[[Tensor], float],
        x0: Float[Tensor, " n"],
        bounds: Box | None = None,
        *,
        seed: int = 0,
        target: float = math.inf,
    ) -> OptResult:
        """The best point found from x0."""
        walk = self.begin(f, x0, Frame.of("CDSM", x0, bounds), seed)
        try:
            while walk.sigma >= self.tol and walk.value < target:
                self.iterate(walk)
        except Spent:
            return walk.result()
        return walk.result()

    def begin(self, f: Callable[[Tensor], float], x0: Tensor, frame: Frame, seed: int, spent: int = 0) -> Walk:
        """A run at its start; ``spent`` of its evaluations are gone already."""
        if len(x0) > 5000 and self.poll_directions is None:
            warnings.warn(f"CDSM: polls {2 * len(x0)} points an iteration; set poll_directions", stacklevel=3)
        walk = Walk(f, frame, self.max_evals, self.increase, numpy_rng(seed, "cdsm"), frame.inward(x0), evals=spent)
        walk.sigma = self.sigma0
        return walk

    def iterate(self, walk: Walk) -> None:
        """One iteration: cover, then poll, then the new sigma."""
        found = (self.cover and walk.offer(self.covering(walk), walk.sigma, "cover")) or self._poll(walk)
        walk.sigma = min(2 * walk.sigma, self.sigma_max) if found else walk.sigma / 2

    def covering(self, walk: Walk) -> Float[np.ndarray, " n"]:
        """The candidate in the ball around the incumbent, and in the box, that is farthest from all points seen."""
        n, seen = len(walk.z), walk.points[: len(walk.seen)]
        steps = walk.rng.standard_normal((self.cover_candidates, n))
        lengths = self.cover_radius * walk.rng.random((len(steps), 1)) ** (1 / n)
        near = walk.frame.clip(walk.z + lengths * steps / np.linalg.norm(steps, axis=1, keepdims=True))
        squares = (seen**2).sum(1) - 2 * near @ seen.T  # less |near|^2, the same for all that are seen
        return near[(squares.min(1) + (near**2).sum(1)).argmax()]

    def _basis(self, walk: Walk) -> Float[np.ndarray, "k n"]:
        """Directions of a random Householder basis, I - 2 v v^T; the rows that are polled."""
        if walk.basis is not None and not self.rotate:
            return walk.basis
        n = len(walk.z)
        v = walk.rng.standard_normal(n)
        v /= np.linalg.norm(v)
        count = min(self.poll_directions or n, n)
        rows = walk.rng.permutation(n)[:count] if count < n else np.arange(n)
        basis = -2 * v[rows, None] * v
        basis[np.arange(count), rows] += 1
        walk.basis = basis
        return basis

    def _poll(self, walk: Walk) -> bool:
        basis = self._basis(walk)
        steps = np.concatenate((basis, -basis))
        if walk.heading is not None:
            steps = steps[np.argsort(-steps @ walk.heading, kind="stable")]
        points = walk.frame.clip(walk.z + walk.sigma * steps)
        return any(walk.offer(point, walk.sigma, "poll") for point in points)
