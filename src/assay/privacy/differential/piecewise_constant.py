"""Densities that are constant between given edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng


@dataclass(frozen=True, eq=False)
class PiecewiseConstant:
    """The density on [edges[0], edges[-1]] in proportion to exp(logw[i]) between edges[i] and edges[i + 1].

    ``edges`` (m + 1,) finite and not falling, ``logw`` (m,), float64; pieces of width zero are dropped. Everything is
    computed from log weights, so that far pieces do not underflow before they are normalised. InputError where no piece
    has a width and a finite log weight.
    """

    edges: Float[np.ndarray, " m+1"]
    logw: Float[np.ndarray, " m"]

    def __post_init__(self) -> None:
        edges, logw = np.asarray(self.edges, np.float64), np.asarray(self.logw, np.float64)
        if logw.ndim != 1 or edges.shape != (len(logw) + 1,):
            raise InputError(f"PiecewiseConstant: {edges.shape} edges, {logw.shape} weights; expected (m + 1,), (m,)")
        if not np.isfinite(edges).all() or (np.diff(edges) < 0).any() or np.isnan(logw).any():
            raise InputError("PiecewiseConstant: edges or weights are unusable; expected finite, sorted edges, no NaN")
        wide = np.diff(edges) > 0
        if not np.isfinite(logw[wide]).any():
            raise InputError("PiecewiseConstant: no mass; expected a piece of positive width and finite log weight")
        object.__setattr__(self, "edges", np.append(edges[:1], edges[1:][wide]))
        object.__setattr__(self, "logw", logw[wide])

    @cached_property
    def log_normalizer(self) -> float:
        """The log of the integral of exp(logw)."""
        return float(logsumexp(self.logw, b=np.diff(self.edges)))

    @cached_property
    def mass(self) -> Float[np.ndarray, " m"]:
        """The probability of each piece."""
        return np.exp(self.logw + np.log(np.diff(self.edges)) - self.log_normalizer)

    def log_pdf(self, t: Float[np.ndarray, "*s"] | float) -> Float[np.ndarray, "*s"]:
        """The log density at ``t``; -inf outside the edges. An edge belongs to the piece on its right."""
        piece = np.searchsorted(self.edges, t, side="right") - 1
        piece = np.where(np.equal(t, self.edges[-1]), len(self.logw) - 1, piece)
        inside = (piece >= 0) & (piece < len(self.logw))
        return np.where(inside, self.logw[np.clip(piece, 0, len(self.logw) - 1)] - self.log_normalizer, -np.inf)

    def pdf(self, t: Float[np.ndarray, "*s"] | float) -> Float[np.ndarray, "*s"]:
        """The density at ``t``."""
        return np.exp(self.log_pdf(t))

    def cdf(self, t: Float[np.ndarray, "*s"] | float) -> Float[np.ndarray, "*s"]:
        """The probability of at most ``t``."""
        return np.interp(t, self.edges, np.append(0.0, np.cumsum(self.mass)).clip(0, 1), left=0.0, right=1.0)

    def sample(self, size: int = 1, *, seed: int) -> Float[np.ndarray, " size"]:
        """Independent draws: a piece by its mass, then a place in it, uniform."""
        rng = numpy_rng(seed, "piecewise-constant")
        total = np.cumsum(self.mass)
        piece = np.searchsorted(total, rng.random(size) * total[-1], side="right").clip(max=len(total) - 1)
        low, high = self.edges[:-1][piece], self.edges[1:][piece]
        return low + rng.random(size) * (high - low)
