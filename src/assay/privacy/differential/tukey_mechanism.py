"""A private median of points in several dimensions, by their halfspace depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from assay.privacy.differential.inverse_sensitivity import check_eps
from assay.privacy.differential.path_length import Bounds
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng

LARGEST = 5  # dimensions


@dataclass(frozen=True, kw_only=True)
class TukeyMechanism:
    """Draw t in a box with probability in proportion to exp(eps depth(t) / 2), depth(t) = min over directions u of
    #{x : <u, x - t> >= 0} (Tukey's halfspace depth, as Asi et al., 2023, arXiv:2302.01855, use it for Gaussian means).

    Replacing one point moves every count by at most 1 and so the depth: eps-DP. The minimum is over ``directions`` unit
    vectors that are fixed by ``directions`` and d alone, at even angles for d = 2 and random beyond; fewer of them
    overstate the depth and leave the privacy as it is. For d <= 2, t is a node of a ``grid`` x ``grid`` lattice over
    ``bounds`` (one pair for all d axes), drawn exactly. For d = 3 to 5 ``steps`` moves of hit-and-run are made, which
    is private only as far as they have mixed; no polynomial number is claimed to be enough. Points are clipped to
    ``bounds``. InputError for other d, and for points that are empty or not finite.
    """

    kind: ClassVar[str] = "function"

    eps: float = 1.0
    bounds: Bounds = (-1.0, 1.0)
    directions: int = 90
    grid: int = 101
    steps: int = 2000

    def __post_init__(self) -> None:
        check_eps("TukeyMechanism", self.eps)
        if not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
            raise InputError(f"TukeyMechanism: bounds={self.bounds}; expected finite low < high")
        if self.directions < 2 or self.grid < 2 or self.steps < 1:
            sizes = f"directions={self.directions}, grid={self.grid}, steps={self.steps}"
            raise InputError(f"TukeyMechanism: {sizes}; expected at least 2, 2 and 1")

    def axes(self, d: int) -> Float[np.ndarray, "k d"]:
        """The directions, each with its opposite."""
        if d == 1:
            return np.array([[1.0], [-1.0]])
        half = self.directions // 2
        if d == 2:
            angle = np.arange(half) * np.pi / half
            unit = np.stack((np.cos(angle), np.sin(angle)), 1)
        else:
            unit = numpy_rng(0, "tukey", d).normal(size=(half, d))
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        return np.concatenate((unit, -unit))

    def fit(self, x: Float[np.ndarray, "n d"]) -> TukeyDepth:
        """The depth of places among the points ``x``, and the draws that follow from it."""
        points = np.asarray(x, np.float64)
        if points.ndim != 2 or len(points) == 0 or not 1 <= points.shape[1] <= LARGEST or np.isnan(points).any():
            found = f"shape {points.shape}, {int(np.isnan(points).sum())} NaN"
            raise InputError(f"TukeyMechanism: x has {found}; expected (n, d) without, n >= 1, d from 1 to {LARGEST}")
        return TukeyDepth(self, points.clip(*self.bounds))


@dataclass(frozen=True, eq=False)
class TukeyDepth:
    """Halfspace depth among ``points`` (n, d), and the mechanism's draws. Depths are not private, the draws are."""

    mechanism: TukeyMechanism
    points: Float[np.ndarray, "n d"]

    @cached_property
    def _along(self) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, "k n"]]:
        axes = self.mechanism.axes(self.points.shape[1])
        return axes, np.sort(axes @ self.points.T, axis=1)

    def __call__(self, t: Float[np.ndarray, "m d"]) -> Int[np.ndarray, " m"]:
        """The depth of the places ``t``: a number of points."""
        axes, along = self._along
        below = [np.searchsorted(row, place, side="left") for row, place in zip(along, axes @ t.T, strict=True)]
        return len(self.points) - np.max(below, axis=0)

    def nodes(self) -> Float[np.ndarray, "m d"]:
        """The lattice, for d <= 2."""
        line = np.linspace(*self.mechanism.bounds, self.mechanism.grid)
        return np.stack(np.meshgrid(*[line] * self.points.shape[1], indexing="ij"), -1).reshape(
            -1, self.points.shape[1]
        )

    def log_probabilities(self) -> Float[np.ndarray, " m"]:
        """Of each node of the lattice."""
        weight = self.mechanism.eps * self(self.nodes()) / 2
        return weight - logsumexp(weight)

    def sample(self, *, seed: int) -> Float[np.ndarray, " d"]:
        """One draw: exact on the lattice for d <= 2, by hit-and-run beyond."""
        rng = numpy_rng(seed, "tukey")
        if self.points.shape[1] <= 2:
            nodes = self.nodes()
            return nodes[rng.choice(len(nodes), p=np.exp(self.log_probabilities()))]
        return self._hit_and_run(rng)

    def _hit_and_run(self, rng: np.random.Generator) -> Float[np.ndarray, " d"]:
        """Metropolis on a random line through the present place: a uniform proposal on its part in the box."""
        low, high = self.mechanism.bounds
        d, steps = self.points.shape[1], self.mechanism.steps
        place, lines = np.full(d, (low + high) / 2), rng.normal(size=(steps, d))
        share, chance = rng.random(steps), np.log(rng.random(steps))
        depth = int(self(place[None])[0])
        for k in range(steps):
            ends = np.sort(np.stack(((low - place) / lines[k], (high - place) / lines[k])), axis=0)
            first, last = ends[0].max(), ends[1].min()
            moved = (place + (first + share[k] * (last - first)) * lines[k]).clip(low, high)
            found = int(self(moved[None])[0])
            if chance[k] < self.mechanism.eps * (found - depth) / 2:
                place, depth = moved, found
        return place
