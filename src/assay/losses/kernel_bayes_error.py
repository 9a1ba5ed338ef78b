"""The Bayes error of labelled points, by local averages of the labels, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng

FLOOR = 1e-8  # added to the sum of the weights, as in the official code
EMPTY, MANY = 1e-6, 0.01  # a sum of weights that counts as none, and the share of points that may have none
MEDIAN = 4096  # the most points whose distances the median is taken of
SCALES = tuple(2.0 ** (k / 2) for k in range(-6, 5))


@dataclass(frozen=True, kw_only=True)
class KernelBayesError:
    """1 - mean over i of max_c eta_c(i), eta_c(i) the weighted share of class c among the other points (Zhang et al.,
    2025, arXiv:2511.08191; kernels and the floor of 1e-8 as in the authors' package).

    Weights of j for i: exp(-|u_i - u_j|^2 / (2 sigma^2)) under "rbf", sigmoid(<u_i, u_j>) under "logistic"; a point is
    never its own neighbour. ``sigma``: a number > 0 in the units of the points, "median" (of the distances between
    points; of 4,096 random ones where there are more), or "loo": of these times 1/8 to 4 the one under which the
    points' own labels are likeliest. The paper takes 0.3 on features divided by the largest magnitude. ``objective``
    "label" replaces the largest share by that of the own label: at least as large, but raised by moving points into
    another class. Float64, in blocks of ``batch`` points: O(n^2) time, O(batch n) memory. Raises InputError for a class
    of one point, options out of range, and where more than 1% of the points have no neighbour within reach, which would
    count as errors.
    """

    kind: ClassVar[str] = "function"

    sigma: float | Literal["median", "loo"] = 0.3
    kernel: Literal["rbf", "logistic"] = "rbf"
    objective: Literal["bayes", "label"] = "bayes"
    batch: int = 512

    def __post_init__(self) -> None:
        for name, known in {"kernel": ("rbf", "logistic"), "objective": ("bayes", "label")}.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of KernelBayesError", str(getattr(self, name)), known)
        number = isinstance(self.sigma, (int, float)) and 0 < self.sigma < math.inf
        if not (number or self.sigma in ("median", "loo")) or self.batch < 1:
            raise InputError(
                f"KernelBayesError: sigma={self.sigma}, batch={self.batch}; expected sigma > 0, 'median' or 'loo', "
                "and batch >= 1"
            )

    def __call__(self, u: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
        """The estimate, in [0, 1]."""
        u = self._points(u, y)
        shares = self._shares(u, y, self.bandwidth(u, y))
        return float(1 - self._chosen(shares, y).mean())

    def gradient(self, u: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> tuple[float, Float[Tensor, "n d"]]:
        """The estimate and its gradient, float64, through every point as the one asked about and as a neighbour.

        The class with the largest share, and sigma, are held. With w_ij what the estimate changes by per unit of the
        log-weight of j for i, g_i = sum_j w_ij (u_i - u_j) and g_j -= w_ij (u_i - u_j) under "rbf".
        """
        u = self._points(u, y)
        sigma, found, total = self.bandwidth(u, y), torch.zeros_like(u), 0.0
        for rows, weight in self._weights(u, sigma):
            counts = weight @ F.one_hot(y).to(weight)
            chosen = counts.argmax(1) if self.objective == "bayes" else y[rows]
            top, mass = counts.gather(1, chosen[:, None]), weight.sum(1, keepdim=True) + FLOOR
            total += float((top / mass).sum())
            slope = -((y == chosen[:, None]) * mass - top) / mass.square() / len(u)
            slope = slope * (weight * -1.0 / sigma**2 if self.kernel == "rbf" else weight * (1 - weight))
            found[rows] += self._query_part(slope, u[rows], u)
            found += self._anchor_part(slope, u[rows], u)
        return 1 - total / len(u), found

    def _query_part(self, slope: Tensor, query: Tensor, u: Tensor) -> Float[Tensor, "b d"]:
        """The gradient through the points that are asked about."""
        pulled = slope @ u
        return slope.sum(1, keepdim=True) * query - pulled if self.kernel == "rbf" else pulled

    def _anchor_part(self, slope: Tensor, query: Tensor, u: Tensor) -> Float[Tensor, "n d"]:
        """The gradient through the points that are their neighbours."""
        pulled = slope.T @ query
        return slope.sum(0)[:, None] * u - pulled if self.kernel == "rbf" else pulled

    def bandwidth(self, u: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
        """sigma as a number; under "logistic", which has none, 1."""
        if self.kernel == "logistic":
            return 1.0
        if isinstance(self.sigma, (int, float)):
            return float(self.sigma)
        some = u if len(u) <= MEDIAN else u[torch.randperm(len(u), generator=torch_rng(0, "median"))[:MEDIAN]]
        median = float(torch.pdist(some.double()).median())
        if not median > 0:
            raise InputError("KernelBayesError: half of the points are the same; expected a number for sigma")
        if self.sigma == "median":
            return median

        def likelihood(sigma: float) -> float:
            shares = self._shares(u.double(), y, sigma, check=False)
            return float(shares.gather(1, y[:, None]).clamp_min(1 / len(u) ** 2).log().sum())

        return max((median * s for s in SCALES), key=likelihood)

    def _points(self, u: Tensor, y: Tensor) -> Float[Tensor, "n d"]:
        check_inputs("KernelBayesError", u)
        check_labels("KernelBayesError", y, len(u))
        if u.dim() != 2:
            raise InputError(f"KernelBayesError: points of shape {tuple(u.shape)}; expected (n, d)")
        counts = torch.bincount(y)
        if int((counts == 1).sum()):
            raise InputError(f"KernelBayesError: class {int((counts == 1).nonzero()[0])} has one point; expected two")
        return u.detach().double()

    def _weights(self, u: Tensor, sigma: float) -> Iterator[tuple[Tensor, Float[Tensor, "b n"]]]:
        """Rows of the weights, the diagonal 0."""
        for rows in torch.arange(len(u)).split(self.batch):
            if self.kernel == "rbf":
                weight = torch.exp(
                    -torch.cdist(u[rows], u, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * sigma**2)
                )
            else:
                weight = torch.sigmoid(u[rows] @ u.T)
            yield rows, weight.scatter(1, rows[:, None], 0.0)

    def _shares(self, u: Tensor, y: Tensor, sigma: float, check: bool = True) -> Float[Tensor, "n c"]:
        counts = torch.cat([weight @ F.one_hot(y).to(weight) for _, weight in self._weights(u, sigma)])
        mass = counts.sum(1, keepdim=True)
        lonely = float((mass < EMPTY).double().mean())
        if check and lonely > MANY:
            raise InputError(
                f"KernelBayesError: {lonely:.0%} of the points have no neighbour within sigma={sigma:.3g}; expected at "
                "most 1% (a larger sigma, 'median' or 'loo')"
            )
        return counts / (mass + FLOOR)

    def _chosen(self, shares: Tensor, y: Tensor) -> Float[Tensor, " n"]:
        return shares.amax(1) if self.objective == "bayes" else shares.gather(1, y[:, None])[:, 0]
