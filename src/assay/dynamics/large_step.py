"""Logistic regression by gradient descent with any step size on separable data, and what its run is bounded by."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import nnls
from scipy.special import expit, logsumexp

from assay.runtime.errors import InputError

Callback = Callable[[int, np.ndarray], None]
Update = Callable[[int, np.ndarray], np.ndarray]


class ConvergenceWarning(UserWarning):
    """The run ended at its last iteration with points still misclassified."""


@dataclass(frozen=True)
class Step:
    """What one iterate does: accuracy in [0, 1], mean logistic loss (nats), norm of its gradient, misclassified."""

    accuracy: float
    loss: float
    gradient: float
    mistakes: int


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A fitted separator. ``coef_`` (d,); ``n_iter_`` updates until accuracy 1; ``history_`` from th_0 = 0 on."""

    coef_: np.ndarray
    n_iter_: int
    converged_: bool
    history_: tuple[Step, ...]
    classes_: tuple[int, int]

    def predict(self, x: Any) -> np.ndarray:
        """Labels (n,) of points (n, d): the positive class where x.coef_ > 0."""
        return np.where(np.asarray(x, float) @ self.coef_ > 0, self.classes_[1], self.classes_[0])


def signed(where: str, x: Any, y: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """z_i = y_i x_i (n, d) in float64, and the two labels; InputError for what no separator through 0 can take."""
    points, labels = np.asarray(x, float), np.asarray(y)
    if points.ndim != 2 or 0 in points.shape or labels.shape != (len(points),):
        raise InputError(f"{where}: x {points.shape}, y {labels.shape}; expected (n, d) and (n,) with n, d >= 1")
    if not np.isfinite(points).all():
        raise InputError(f"{where}: x has {int((~np.isfinite(points)).sum())} NaN or infinite values; expected finite")
    found = set(labels.tolist())
    if not (found <= {0, 1} or found <= {-1, 1}):
        raise InputError(f"{where}: labels {sorted(found)[:5]}; expected two classes, {{0, 1}} or {{-1, 1}}")
    zero = int((~points.any(1)).sum())
    if zero:
        raise InputError(f"{where}: {zero} all-zero rows; expected none (append a constant feature for an intercept)")
    negative = -1 if -1 in found else 0
    return points * np.where(labels == 1, 1.0, -1.0)[:, None], (negative, 1)


def descend(
    z: np.ndarray, classes: tuple[int, int], update: Update, max_iter: int, callback: Callback | None
) -> LinearFit:
    """th_0 = 0, th_{t+1} = th_t + update(t, Z th_t) until every margin is above 0; a margin of 0 is a mistake."""
    theta, history = np.zeros(z.shape[1]), []
    for t in range(max_iter + 1):
        u = z @ theta
        mistakes = int((u <= 0).sum())
        gradient = float(np.linalg.norm(expit(-u) @ z)) / len(z)
        history.append(Step(1 - mistakes / len(z), float(np.logaddexp(0, -u).mean()), gradient, mistakes))
        if callback is not None:
            callback(t, theta.copy())
        if mistakes == 0 or t == max_iter:
            break
        theta = theta + update(t, u)
    if mistakes:
        warnings.warn(f"{mistakes} of {len(z)} misclassified after {max_iter} steps", ConvergenceWarning, stacklevel=3)
    return LinearFit(theta, t, mistakes == 0, tuple(history), classes)


def check_iterations(where: str, max_iter: int) -> None:
    """InputError unless at least one update is allowed."""
    if max_iter < 1:
        raise InputError(f"{where}: max_iter={max_iter}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class LogisticGD:
    """Logistic regression by gradient descent, plain or normalised (Tyurin, 2024, arXiv:2412.08424, sections 3 and 6).

    With z_i = y_i x_i and q_i = 1 / (1 + exp(z_i.th)), from th = 0: th += step * mean(q_i z_i), or, where
    ``normalized``, th += step * sum(q_i z_i) / sum(q_i). It stops at accuracy 1, never on loss or gradient, which
    large steps make misleading; as step grows, th / step of the plain form becomes the batch perceptron. ``step`` > 0.
    ``callback(t, th)`` sees every iterate. There is no intercept and no scaling of features.
    """

    kind: ClassVar[str] = "estimator"

    step: float = 1.0
    max_iter: int = 10_000
    normalized: bool = False
    callback: Callback | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise InputError(f"LogisticGD: step={self.step}; expected a finite number > 0")
        check_iterations("LogisticGD", self.max_iter)

    def fit(self, x: Any, y: Any) -> LinearFit:
        """Fit to points x (n, d) with labels y (n,) in {0, 1} or {-1, 1}.

        Raises InputError for other labels, NaN, or all-zero rows; warns (ConvergenceWarning) at ``max_iter``.
        """
        z, classes = signed("LogisticGD", x, y)

        def update(t: int, u: np.ndarray) -> np.ndarray:
            if not self.normalized:
                return self.step / len(z) * (expit(-u) @ z)
            log_q = -np.logaddexp(0, u)
            return self.step * (np.exp(log_q - logsumexp(log_q)) @ z)  # also where every q underflows

        return descend(z, classes, update, self.max_iter, self.callback)


@dataclass(frozen=True)
class Separability:
    """``margin`` mu = max over unit th of min_i y_i x_i.th (0: not separable), ``radius`` R = max |x_i|, n points."""

    separable: bool
    margin: float
    radius: float
    n: int

    @property
    def bound_batch(self) -> float:
        """Largest number of updates of the batch perceptron: n R^2 / mu^2."""
        return self.n * self.bound_normalized

    @property
    def bound_normalized(self) -> float:
        """Largest number of updates of the perceptron and of the normalised batch perceptron: R^2 / mu^2."""
        return (self.radius / self.margin) ** 2 if self.separable else math.inf

    def bound_logistic(self, step: float) -> float:
        """Largest number of updates of normalised LogisticGD: R^2 / mu^2 + 2 log(2n - 1) / (step mu^2)."""
        if not self.separable:
            return math.inf
        return self.bound_normalized + 2 * math.log(2 * self.n - 1) / (step * self.margin**2)


def separability_report(x: Any, y: Any) -> Separability:
    """Margin, radius and bounds (Tyurin, 2024, arXiv:2412.08424, Theorems 3.2 to 6.1) of points (n, d), labels (n,).

    The hard margin is the least-norm w with y_i x_i.w >= 1, by non-negative least squares (Lawson & Hanson, 1974,
    chapter 23). A margin below 1e-7 R counts as not separable. InputError as LogisticGD.fit.
    """
    z, _ = signed("separability_report", x, y)
    radius = float(np.linalg.norm(z, axis=1).max())
    stacked = np.vstack([z.T / radius, np.ones(len(z))])
    target = np.zeros(len(stacked))
    target[-1] = 1.0
    weights, _ = nnls(stacked, target)
    residual = target - stacked @ weights
    if residual[-1] <= 1e-14:
        return Separability(False, 0.0, radius, len(z))
    w = -residual[:-1] / residual[-1]
    norm = float(np.linalg.norm(w))
    margin = float((z @ w).min()) / norm if norm > 0 else 0.0
    separable = margin > 1e-7 * radius
    return Separability(separable, margin if separable else 0.0, radius, len(z))
