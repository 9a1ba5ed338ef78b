"""Logistic regression on frozen features."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.represent.naive_bayes_probe import checked_features, checked_samples
from assay.runtime.errors import InputError, unknown
from assay.training import Plan, State, fit

RATES = (0.01, 0.1, 1.0)  # step sizes that the search of "sgd" tries


class LogisticProbe(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression, the discriminative probe (Zheng et al., 2023, arXiv:2302.02334).

    Minimises C x the summed cross-entropy + |W|^2 / 2, W of one row where there are two classes, as scikit-learn's; the
    bias is free. ``scaler="minmax"`` brings each feature to [0, 1] by the training samples (constant ones to 0), None
    leaves them. ``solver="lbfgs"`` is the setting of the paper's code with at most ``max_iter`` iterations (whether it
    converged is in ``converged_``); ``"sgd"`` trains ``epochs`` epochs with momentum 0.9 at the rate of ``RATES`` that
    ends with the least objective, from zero weights, batches drawn by ``seed``.

    A scikit-learn classifier. Learned: ``classes_`` (K,), ``coef_`` (K, n) and ``intercept_`` (K,) on scaled features,
    with two classes the row of the second less that of the first. Raises InputError for a single class, for features
    that are not finite or not (m, n), for options out of range, and where "sgd" diverges at every rate.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self,
        C: float = 1.0,
        scaler: str | None = "minmax",
        solver: str = "lbfgs",
        max_iter: int = 1000,
        epochs: int = 100,
        seed: int = 0,
    ) -> None:
        self.C = C
        self.scaler = scaler
        self.solver = solver
        self.max_iter = max_iter
        self.epochs = epochs
        self.seed = seed

    def fit(self, X: Any, y: Any) -> LogisticProbe:
        """Learn from features (m, n) and labels (m,)."""
        self._check()
        x, labels = checked_samples(self, X, y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"LogisticProbe: {len(self.classes_)} class; expected at least two")
        self.scaler_ = MinMaxScaler().fit(x) if self.scaler == "minmax" else None
        x = self._scaled(x)
        self.coef_, self.intercept_ = self._lbfgs(x, codes) if self.solver == "lbfgs" else self._sgd(x, codes)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The scores (m, K); with two classes one of the second against the first (m,)."""
        scores = self._scaled(checked_features(self, X)) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest score (m,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "m k"]:
        """Probabilities of the classes."""
        scores = self.decision_function(X)
        return np.stack((expit(-scores), expit(scores)), 1) if scores.ndim == 1 else softmax(scores, axis=1)

    def _check(self) -> None:
        if not (math.isfinite(self.C) and self.C > 0) or self.max_iter < 1 or self.epochs < 1:
            given = f"C={self.C}, max_iter={self.max_iter}, epochs={self.epochs}"
            raise InputError(f"LogisticProbe: {given}; expected a finite C > 0, counts >= 1")
        if self.scaler not in ("minmax", None):
            raise unknown("scaler of LogisticProbe", str(self.scaler), ("minmax", "None"))
        if self.solver not in ("lbfgs", "sgd"):
            raise unknown("solver of LogisticProbe", str(self.solver), ("lbfgs", "sgd"))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return x if self.scaler_ is None else self.scaler_.transform(x)

    def _lbfgs(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=self.C, max_iter=self.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        self.n_iter_ = int(model.n_iter_[0])
        self.converged_ = self.n_iter_ < self.max_iter
        return model.coef_, model.intercept_

    def _sgd(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes = len(self.classes_)
        data = Data(
            torch.from_numpy(x).float(),
            torch.from_numpy(y).long(),
            tuple(map(str, self.classes_)),
            (-math.inf, math.inf),
            "features",
        )
        start = nn.utils.skip_init(nn.Linear, x.shape[1], classes)
        nn.init.zeros_(start.weight)
        nn.init.zeros_(start.bias)
        found = {}
        for rate in RATES:
            plan = Plan(epochs=self.epochs, optimizer=_Momentum(rate), lr=rate)
            try:
                model = fit(start, data, self._objective, plan, seed=self.seed)
            except InputError:  # the rate is too large for this objective
                continue
            with torch.no_grad():
                reached = float(self._mean(model, data.x, data.y, len(data)))
            if math.isfinite(reached):
                found[rate] = reached, model
        if not found:
            raise InputError(
                f"LogisticProbe: 'sgd' diverges at C={self.C} and every rate of {RATES}; expected a larger C"
            )
        self.lr_ = min(found, key=lambda rate: found[rate][0])
        self.n_iter_ = self.epochs
        weight, bias = (p.detach().double().numpy() for p in found[self.lr_][1].parameters())
        return (weight, bias) if classes > 2 else (weight[1:] - weight[:1], bias[1:] - bias[:1])

    def _objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self._mean(model, batch.x, batch.y, len(state.data))

    def _mean(self, model: nn.Module, x: Tensor, y: Tensor, m: int) -> Tensor:
        """The objective divided by C m: mean cross-entropy + |W|^2 / (2 C m).

        Of two classes the rows are w / 2 and -w / 2, which start from 0 and stay so: |w|^2 is twice their squares.
        """
        weight = model.get_parameter("weight")
        square = weight.square().sum() * (2 if len(weight) == 2 else 1)
        return F.cross_entropy(model(x), y) + square / (2 * self.C * m)


class _Momentum:
    """Plain SGD with momentum 0.9 at a rate."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.rate, 0.9)
