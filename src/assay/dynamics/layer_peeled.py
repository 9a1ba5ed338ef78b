"""The layer-peeled model: what last-layer features and classifier become when everything below them is free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from assay.dynamics.simplex_etf import simplex_etf
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import numpy_rng


@dataclass(frozen=True, eq=False)
class LayerPeeledFit:
    """A solution. ``weight`` and ``feature`` (K, d) float64: classifier rows and the feature of each class.

    ``loss`` (nats) exceeds the least possible one by at most ``gap``, whatever was drawn; ``optimum_balanced`` is the
    least loss for classes of equal size.
    """

    loss: float
    gap: float
    weight: Float[Tensor, "k d"]
    feature: Float[Tensor, "k d"]
    optimum_balanced: float

    @property
    def cos(self) -> Float[Tensor, "k k"]:
        """Cosines between classifier rows."""
        return _cosines(self.weight)

    @property
    def feature_cos(self) -> Float[Tensor, "k k"]:
        """Cosines between the classes' features."""
        return _cosines(self.feature)


def _cosines(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    return unit @ unit.T


@dataclass(frozen=True, kw_only=True)
class LayerPeeledModel:
    """min over W, H of sum_k (n_k/N) CE(W h_k, k) (Fang et al., 2021, arXiv:2101.12699, eq. 5) under

    (1/K) sum_k |w_k|^2 <= ``e_w`` and (1/K) sum_k |h_k|^2 <= ``e_h``, for classes of ``counts`` n_k >= 1 in dimension
    ``dim`` >= K - 1. One feature a class suffices: CE is convex in it, so that averaging a class's features does not
    raise the loss. ``classifier="etf"`` holds W at sqrt(e_w) times a simplex ETF (Yang et al., 2022,
    arXiv:2203.09081, eq. 5) and solves for H alone. Raises InputError for other values.
    """

    kind: ClassVar[str] = "function"

    counts: tuple[int, ...]
    dim: int
    e_w: float = 1.0
    e_h: float = 1.0
    classifier: Literal["learned", "etf"] = "learned"

    def __post_init__(self) -> None:
        if len(self.counts) < 2 or min(self.counts) < 1 or self.dim < len(self.counts) - 1:
            raise InputError(
                f"LayerPeeledModel: counts={self.counts}, dim={self.dim}; expected K >= 2 counts >= 1, dim >= K - 1"
            )
        if not (0 < self.e_w < math.inf and 0 < self.e_h < math.inf):
            raise InputError(f"LayerPeeledModel: e_w={self.e_w}, e_h={self.e_h}; expected finite numbers > 0")
        if self.classifier not in ("learned", "etf"):
            raise unknown("classifier of LayerPeeledModel", self.classifier, ("learned", "etf"))

    @property
    def optimum_balanced(self) -> float:
        """log(1 + (K-1) exp(-K/(K-1) sqrt(e_w e_h))), attained by aligned ETFs (Fang et al., 2021, Theorem 1)."""
        k = len(self.counts)
        return math.log1p((k - 1) * math.exp(-k / (k - 1) * math.sqrt(self.e_w * self.e_h)))

    def solve(self, *, steps: int = 6000, seed: int = 0) -> LayerPeeledFit:
        """At most ``steps`` L-BFGS steps from a random start, over directions: W and H lie on their spheres.

        That loses nothing: inside the ball, longer features lower the loss of logits that are not constant.
        """
        if steps < 1:
            raise InputError(f"LayerPeeledModel: steps={steps}; expected at least 1")
        k, d = len(self.counts), self.dim
        frame = simplex_etf(k, d, scale=math.sqrt(self.e_w), seed=seed).numpy()
        radii = np.sqrt(k * np.array([self.e_w, self.e_h]))

        def rows(free: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            raw = free.reshape(2, k, d)
            norms = np.linalg.norm(raw, axis=(1, 2))
            w, h = raw * (radii / norms)[:, None, None]
            return (frame if self.classifier == "etf" else w), h, norms

        def value(free: np.ndarray) -> tuple[float, np.ndarray]:
            w, h, norms = rows(free)
            loss, g = self._loss(w, h)
            gradient = np.stack([g.T @ h * (self.classifier == "learned"), g @ w])
            unit = free.reshape(2, k, d) / norms[:, None, None]
            along = (gradient * unit).sum((1, 2), keepdims=True)
            return loss, ((gradient - along * unit) * (radii / norms)[:, None, None]).ravel()

        start = numpy_rng(seed, "layer-peeled", k, d).normal(size=2 * k * d)
        options = {"maxiter": steps, "maxfun": 4 * steps, "maxcor": 30, "ftol": 0.0, "gtol": 1e-12}
        w, h, _ = rows(minimize(value, start, jac=True, method="L-BFGS-B", options=options).x)
        loss, g = self._loss(w, h)
        weight, feature = torch.from_numpy(w), torch.from_numpy(h)
        return LayerPeeledFit(loss, self._gap(w, h, g), weight, feature, self.optimum_balanced)

    def _loss(self, w: np.ndarray, h: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss, and its gradient (K, K) in the logits H W^T."""
        share = np.array(self.counts, float) / sum(self.counts)
        log_p = log_softmax(h @ w.T, axis=1)
        return float(-share @ np.diag(log_p)), share[:, None] * (np.exp(log_p) - np.eye(len(w)))

    def _gap(self, w: np.ndarray, h: np.ndarray, g: np.ndarray) -> float:
        """How far the loss can be from the least one, by the convex relaxation (Fang et al., 2021, section 4).

        The constraints put Z = H W^T in the nuclear-norm ball of radius K sqrt(e_w e_h); the loss is convex in Z, so no
        Z' of the ball gets below loss - <g, Z - Z'>, and the least <g, Z'> is -radius |g|_op. With W held, H lies in a
        Frobenius ball instead.
        """
        if self.classifier == "etf":
            return float((g * (h @ w.T)).sum() + np.linalg.norm(g @ w) * math.sqrt(len(w) * self.e_h))
        return float((g * (h @ w.T)).sum() + np.linalg.norm(g, 2) * len(w) * math.sqrt(self.e_w * self.e_h))
