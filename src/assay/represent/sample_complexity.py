"""How many samples a probe needs: Gaussian classes of known error, and the least size that comes near it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm
from sklearn.base import ClassifierMixin, clone

from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive, numpy_rng

ATTEMPTS = 1000  # at a draw that holds every class


@dataclass(frozen=True, kw_only=True)
class GaussianClasses:
    """The simulation of Zheng et al. (2023, arXiv:2302.02334): K Gaussian ``classes`` on n ``features``.

    Class k has the same mean on every feature: -1 for k = 0, else 2^(k-1); all have one covariance. "easy" is diagonal,
    n on the first half of the features and 1 on the rest. "hard" adds what lies off the diagonal of A^T A,
    A = 2 rand(n, n) - 1 drawn by ``seed``: features depend on each other. That matrix has negative eigenvalues; as in
    NumPy's sampler, which the official code calls, their absolute values are drawn from. Labels are uniform, and a draw
    without one of the classes is drawn again, or each class gets its equal share with ``stratify``. Raises InputError
    for less than two classes, two features or K samples.
    """

    kind: ClassVar[str] = "function"

    classes: int = 2
    features: int = 100
    covariance: Literal["easy", "hard"] = "easy"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes < 2 or self.features < 2:
            given = f"{self.classes} classes, {self.features} features"
            raise InputError(f"GaussianClasses: {given}; expected two or more of each")
        if self.covariance not in ("easy", "hard"):
            raise unknown("covariance of GaussianClasses", self.covariance, ("easy", "hard"))

    @cached_property
    def means(self) -> Float[np.ndarray, " k"]:
        """The mean of every feature by class."""
        return np.concatenate(([-1.0], 2.0 ** np.arange(self.classes - 1)))

    @cached_property
    def sigma(self) -> Float[np.ndarray, "n n"]:
        """The covariance that is drawn from."""
        n = self.features
        matrix = np.diag(np.where(np.arange(n) < n // 2, float(n), 1.0))
        if self.covariance == "hard":
            a = 2 * numpy_rng(self.seed, "covariance").random((n, n)) - 1
            product = a.T @ a
            values, vectors = np.linalg.eigh(matrix + product - np.diag(product.diagonal()))
            matrix = (vectors * np.abs(values)) @ vectors.T
        return matrix

    @cached_property
    def _root(self) -> Float[np.ndarray, "n n"]:
        values, vectors = np.linalg.eigh(self.sigma)
        return vectors * values.clip(0) ** 0.5

    def sample(
        self, m: int, *, seed: int, stratify: bool = False
    ) -> tuple[Float[np.ndarray, "m n"], Int[np.ndarray, " m"]]:
        """``m`` features and labels, every class among them."""
        if m < self.classes:
            raise InputError(f"GaussianClasses: {m} samples; expected at least {self.classes}, one a class")
        rng = numpy_rng(seed, "gaussian classes", m)
        if stratify:
            y = rng.permutation(np.arange(m) % self.classes)
        else:
            y = with_every_class("GaussianClasses", lambda: rng.integers(self.classes, size=m), np.arange(self.classes))
        noise = rng.normal(size=(m, self.features))
        deviations = self.sigma.diagonal() ** 0.5
        spread = noise * deviations if self.covariance == "easy" else noise @ self._root.T
        return self.means[y, None] + spread, y

    @property
    def bayes_error(self) -> float:
        """The least error of any classifier, exact; logistic regression tends to it."""
        return self._error(np.linalg.solve(self.sigma, np.ones(self.features)))

    @property
    def naive_error(self) -> float:
        """The error that naive Bayes tends to, exact: above the Bayes error where features depend."""
        return self._error(1 / self.sigma.diagonal())

    def _error(self, direction: Float[np.ndarray, " n"]) -> float:
        """Error of predicting the class whose mean is nearest to x.u / sum(u), which is Gaussian about each mean."""
        deviation = math.sqrt(direction @ self.sigma @ direction) / direction.sum()
        middle = (self.means[1:] + self.means[:-1]) / 2
        edges = np.concatenate(([-np.inf], middle, [np.inf]))
        tails = norm.cdf((edges[:-1] - self.means) / deviation) + norm.sf((edges[1:] - self.means) / deviation)
        return float(tails.mean())


def with_every_class(
    where: str, draw: Callable[[], Int[np.ndarray, " m"]], y: Int[np.ndarray, " k"]
) -> Int[np.ndarray, " m"]:
    """Rows of ``y``, drawn again until every label of ``y`` is among theirs; InputError after 1000 attempts."""
    classes = len(np.unique(y))
    for _ in range(ATTEMPTS):
        rows = draw()
        if len(np.unique(y[rows])) == classes:
            return rows
    raise InputError(f"{where}: no draw of {len(rows)} samples held all {classes} classes; expected larger sizes")


def sample_complexity(
    simulator: GaussianClasses,
    probe: ClassifierMixin,
    *,
    seed: int,
    tol: float = 0.01,
    reference: float | None = None,
    sizes: Sequence[int] | None = None,
    test: int = 2000,
    stratify: bool = False,
) -> int | None:
    """The first of ``sizes`` at which the ``probe``, fitted on that many new samples, errs by ``reference`` + ``tol``.

    None where no size does. The error is measured on ``test`` samples. ``reference`` is the Bayes error unless given:
    with the probe's own asymptote, such as ``simulator.naive_error``, another question is asked. ``sizes`` are those of
    the official code unless given: from 2 K to 100 n in steps of ceil(log n). Raises InputError for ``tol`` < 0 and for
    sizes below K or not increasing.
    """
    n, classes = simulator.features, simulator.classes
    steps = list(range(2 * classes, 100 * n + 1, math.ceil(math.log(n)))) if sizes is None else list(sizes)
    if not tol >= 0 or not steps or steps[0] < classes or any(b <= a for a, b in pairwise(steps)):
        raise InputError(
            f"sample_complexity: tol={tol}, sizes={steps[:5]}; expected tol >= 0, increasing sizes >= {classes}"
        )
    goal = tol + (simulator.bayes_error if reference is None else reference)
    held, truth = simulator.sample(test, seed=derive(seed, "test"), stratify=True)
    for m in steps:
        x, y = simulator.sample(m, seed=derive(seed, "train"), stratify=stratify)
        if float((clone(probe).fit(x, y).predict(held) != truth).mean()) <= goal:
            return m
    return None
