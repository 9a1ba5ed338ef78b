"""The perceptron, one point or all misclassified points a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from assay.dynamics.large_step import Callback, LinearFit, check_iterations, descend, signed
from assay.runtime.errors import unknown
from assay.runtime.random import numpy_rng


@dataclass(frozen=True, kw_only=True)
class BatchPerceptron:
    """The batch perceptron: the limit of th / step of LogisticGD (Tyurin, 2024, arXiv:2412.08424, section 3).

    From 0, p += (1/n) sum of the z_i = y_i x_i with z_i.p <= 0. The first step is half of that, as logistic regression
    has q = 1/2 there, unless ``first_half_step`` is off. ``normalize="misclassified"`` divides by their number instead
    of n, and makes a full first step. At most n R^2 / mu^2 updates, normalised R^2 / mu^2.
    """

    kind: ClassVar[str] = "estimator"

    normalize: Literal["misclassified"] | None = None
    first_half_step: bool = True
    max_iter: int = 10_000
    callback: Callback | None = None

    def __post_init__(self) -> None:
        if self.normalize not in (None, "misclassified"):
            raise unknown("normalize of BatchPerceptron", str(self.normalize), ("misclassified",))
        check_iterations("BatchPerceptron", self.max_iter)

    def fit(self, x: Any, y: Any) -> LinearFit:
        """Fit to points x (n, d), labels y (n,) in {0, 1} or {-1, 1}. Errors and warnings as LogisticGD.fit."""
        z, classes = signed("BatchPerceptron", x, y)

        def update(t: int, u: np.ndarray) -> np.ndarray:
            wrong = u <= 0
            if self.normalize is not None:
                return wrong @ z / wrong.sum()
            return wrong @ z / len(z) * (0.5 if t == 0 and self.first_half_step else 1.0)

        return descend(z, classes, update, self.max_iter, self.callback)


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """The perceptron (Rosenblatt, 1958): p += z_j = y_j x_j for one misclassified j a step; at most R^2 / mu^2 steps.

    ``order``: the first misclassified point, the next after the last one taken (cyclic), or a random one of ``seed``.
    """

    kind: ClassVar[str] = "estimator"

    order: Literal["first", "cyclic", "random"] = "first"
    max_iter: int = 100_000
    seed: int = 0
    callback: Callback | None = None

    def __post_init__(self) -> None:
        if self.order not in ("first", "cyclic", "random"):
            raise unknown("order of Perceptron", self.order, ("first", "cyclic", "random"))
        check_iterations("Perceptron", self.max_iter)

    def fit(self, x: Any, y: Any) -> LinearFit:
        """Fit to points x (n, d), labels y (n,) in {0, 1} or {-1, 1}. Errors and warnings as LogisticGD.fit."""
        z, classes = signed("Perceptron", x, y)
        rng = numpy_rng(self.seed, "perceptron")
        last = -1

        def update(t: int, u: np.ndarray) -> np.ndarray:
            nonlocal last
            wrong = np.flatnonzero(u <= 0)
            if self.order == "random":
                last = int(rng.choice(wrong))
            elif self.order == "cyclic":
                last = int(wrong[np.searchsorted(wrong, last + 1) % len(wrong)])
            else:
                last = int(wrong[0])
            return z[last]

        return descend(z, classes, update, self.max_iter, self.callback)
