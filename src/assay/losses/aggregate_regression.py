"""Linear regression from the mean responses of bags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng

RHOS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SINGULAR = 1e12


@dataclass(frozen=True)
class AggregateFit:
    """``coef_`` (d,), ``intercept_``, and the ``rho_`` that was used."""

    coef_: Float[np.ndarray, " d"]
    intercept_: float
    rho_: float

    def predict(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Predicted responses of single samples."""
        return x @ self.coef_ + self.intercept_


@dataclass(frozen=True)
class _Bags:
    """Bags by position: mean features, mean responses, and the scatter of the features within each."""

    mean: Float[np.ndarray, "a d"]
    response: Float[np.ndarray, " a"]
    within: Float[np.ndarray, "n d"]
    bag: Int[np.ndarray, " n"]
    size: Float[np.ndarray, " a"]

    def part(self, keep: np.ndarray) -> _Bags:
        """The bags that the mask keeps."""
        samples = keep[self.bag]
        number = np.cumsum(keep) - 1
        return _Bags(
            self.mean[keep], self.response[keep], self.within[samples], number[self.bag[samples]], self.size[keep]
        )


@dataclass(frozen=True, kw_only=True)
class AggregateLinearRegression:
    """Least squares of the interpolated bag loss (Javanmard et al., 2024, arXiv:2401.11081), in closed form.

    [1/m sum_a xbar_a xbar_a^T + rho/m sum_a W_a / k_a + ridge I] theta = 1/m sum_a xbar_a ybar_a with W_a the scatter
    of the features within bag a of size k_a. ``rho`` >= 0 (0: bag level, 1: instance level), or "cv": that of ``RHOS``
    with the least squared error of the bag means of held-out bags in ``folds`` folds; no single response is needed.
    With ``intercept`` features and responses are centred by the means over the bags.

    ``fit(x, bag, bag_mean)``: x (n, d), bag (n,) integers 0 to m - 1 without gaps, bag_mean (m,). Raises InputError for
    other shapes, an empty bag, values that are not finite, and a singular system (m <= d with rho = ridge = 0).
    """

    rho: float | Literal["cv"] = "cv"
    ridge: float = 0.0
    intercept: bool = True
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        good = self.rho == "cv" or (not isinstance(self.rho, str) and math.isfinite(self.rho) and self.rho >= 0)
        if not good or not (math.isfinite(self.ridge) and self.ridge >= 0) or self.folds < 2:
            raise InputError(
                f"AggregateLinearRegression: rho={self.rho!r}, ridge={self.ridge}, folds={self.folds}; "
                "expected rho >= 0 or 'cv', ridge >= 0, folds >= 2"
            )

    def fit(
        self, x: Float[np.ndarray, "n d"], bag: Int[np.ndarray, " n"], bag_mean: Float[np.ndarray, " m"]
    ) -> AggregateFit:
        """The coefficients that minimise the loss."""
        bags = _bags(x, bag, bag_mean)
        rho = self._choose(bags) if isinstance(self.rho, str) else float(self.rho)
        return self._solve(bags, rho)

    def shrinkage(self, size: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """What the scatter within each bag is divided by, so that a bag counts as one: its size."""
        return size

    def _solve(self, bags: _Bags, rho: float) -> AggregateFit:
        m, d = bags.mean.shape
        x0, y0 = (bags.mean.mean(0), bags.response.mean()) if self.intercept else (np.zeros(d), 0.0)
        mean, response = bags.mean - x0, bags.response - y0
        scatter = bags.within.T @ (bags.within / self.shrinkage(bags.size)[bags.bag, None])
        gram = (mean.T @ mean + rho * scatter) / m + self.ridge * np.eye(d)
        spectrum = np.linalg.eigvalsh(gram)
        if not spectrum[0] * SINGULAR > spectrum[-1]:
            raise InputError(
                f"AggregateLinearRegression: the system of {m} bags in {d} dimensions is singular at rho={rho}, "
                f"ridge={self.ridge}; expected more bags than dimensions, rho > 0 or ridge > 0"
            )
        coef = np.linalg.solve(gram, mean.T @ response / m)
        return AggregateFit(coef, float(y0 - x0 @ coef), rho)

    def _choose(self, bags: _Bags) -> float:
        m = len(bags.mean)
        if m < self.folds:
            raise InputError(f"AggregateLinearRegression: {m} bags; expected at least {self.folds} to validate rho")
        fold = numpy_rng(self.seed, "folds").permutation(m) % self.folds
        errors = {rho: self._held_out(bags, fold, rho) for rho in RHOS}
        best = min(errors, key=lambda rho: errors[rho])
        if not math.isfinite(errors[best]):
            raise InputError(f"AggregateLinearRegression: every rho of {RHOS} is singular; expected more bags or ridge")
        return best

    def _held_out(self, bags: _Bags, fold: np.ndarray, rho: float) -> float:
        """Mean squared error of the bag means of the held-out bags; infinite where a fold is singular."""
        total = 0.0
        for f in range(self.folds):
            try:
                fitted = self._solve(bags.part(fold != f), rho)
            except InputError:
                return math.inf
            total += float(((fitted.predict(bags.mean[fold == f]) - bags.response[fold == f]) ** 2).sum())
        return total / len(bags.mean)


def _bags(x: np.ndarray, bag: np.ndarray, bag_mean: np.ndarray) -> _Bags:
    x, bag, response = np.asarray(x, float), np.asarray(bag), np.asarray(bag_mean, float)
    where = "AggregateLinearRegression"
    if x.ndim != 2 or len(x) == 0 or bag.shape != (len(x),) or bag.dtype.kind not in "iu" or response.ndim != 1:
        raise InputError(
            f"{where}: x {x.shape}, bag {bag.dtype} {bag.shape}, bag_mean {response.shape}; "
            "expected (n, d), integers (n,) and (m,)"
        )
    m = len(response)
    if bag.min() < 0 or bag.max() >= m or (np.bincount(bag, minlength=m) == 0).any():
        raise InputError(f"{where}: bags {bag.min()} to {bag.max()}; expected each of 0 to {m - 1} at least once")
    if not (np.isfinite(x).all() and np.isfinite(response).all()):
        raise InputError(f"{where}: x or bag_mean is not finite; expected finite numbers")
    size = np.bincount(bag, minlength=m).astype(float)
    starts = np.concatenate([[0], np.cumsum(size[:-1])]).astype(int)
    mean = np.add.reduceat(x[np.argsort(bag, kind="stable")], starts) / size[:, None]
    return _Bags(mean, response, x - mean[bag], bag, size)
