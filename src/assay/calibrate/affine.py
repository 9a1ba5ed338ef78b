"""Affine maps of logits or of log-probabilities, fitted by penalised maximum likelihood."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from assay.calibrate.base import CalibrationMap, Outputs
from assay.calibrate.measures import sample_nll
from assay.calibrate.temperature import FittedTemperature, TemperatureScaling
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable


@rebuildable
class AffineMap(CalibrationMap):
    """``weight_`` x + ``bias_``, where x are the logits or, with ``log_probabilities``, their log-softmax."""

    weight_: Tensor
    bias_: Tensor

    def __init__(self, classes: int, log_probabilities: bool = False) -> None:
        super().__init__()
        self.log_probabilities = log_probabilities
        self.register_buffer("weight_", torch.eye(classes, dtype=torch.float64))
        self.register_buffer("bias_", torch.zeros(classes, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return len(self.bias_)

    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits, in float64."""
        x = logits.log_softmax(1) if self.log_probabilities else logits
        return x @ self.weight_.T + self.bias_


def check_strengths(where: str, strengths: tuple[float, ...], folds: int) -> None:
    """InputError unless there is a finite penalty >= 0, and two folds where one has to be chosen."""
    if not strengths or not all(0 <= s < float("inf") for s in strengths) or folds < 2:
        raise InputError(f"{where}: strengths={strengths}, folds={folds}; expected finite strengths >= 0, folds >= 2")


def fit_affine(
    outputs: Outputs,
    y: Tensor,
    *,
    log_probabilities: bool = False,
    diagonal: bool = False,
    strengths: tuple[float, ...] = (0.0,),
    folds: int = 3,
) -> AffineMap:
    """The affine map of least mean negative log-likelihood plus off-diagonal and intercept regularisation (ODIR).

    The penalty is ``strength`` x (mean of squared off-diagonal weights + mean of squared intercepts); of several
    strengths the one of least likelihood loss over ``folds`` parts of the samples, each class spread evenly over them.
    """
    x = outputs.logits.double()
    inputs, labels = (x.log_softmax(1) if log_probabilities else x).numpy(), y.numpy()
    start = TemperatureScaling().fit(outputs, y)
    assert isinstance(start, FittedTemperature)
    t = start.temperature_
    strength = strengths[0]
    if len(strengths) > 1 and len(labels) >= folds:
        losses = [_held_out(inputs / t, labels, diagonal, s / t**2, folds) for s in strengths]
        strength = strengths[int(np.argmin(losses))]
    found = _minimise(inputs / t, labels, diagonal, strength / t**2)
    fitted = AffineMap(outputs.classes, log_probabilities)
    fitted.weight_.copy_(torch.from_numpy(found[:, :-1] / t))
    fitted.bias_.copy_(torch.from_numpy(found[:, -1]))
    return fitted


def _minimise(x: np.ndarray, y: np.ndarray, diagonal: bool, strength: float) -> np.ndarray:
    """Weights and intercepts (c, c + 1) by L-BFGS from the identity: the problem is convex."""
    n, c = x.shape
    design, target, identity = np.hstack([x, np.ones((n, 1))]), np.eye(c)[y], np.eye(c, c + 1)
    free = (identity + np.eye(1, c + 1, c) if diagonal else np.ones((c, c + 1))) > 0
    penalty = np.where(identity > 0, 0.0, strength / (c * (c - 1)))
    penalty[:, -1] = strength / c

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = identity.copy()
        w[free] = flat
        log_p = log_softmax(design @ w.T, axis=1)
        slope = (np.exp(log_p) - target).T @ design / n + 2 * penalty * (w - identity)
        value = -log_p[np.arange(n), y].mean() + (penalty * (w - identity) ** 2).sum()
        return float(value), slope[free]

    options = {"maxiter": 500, "ftol": 1e-10, "gtol": 1e-6}
    found = identity.copy()
    found[free] = minimize(loss, identity[free], jac=True, method="L-BFGS-B", options=options).x
    return found


def _held_out(x: np.ndarray, y: np.ndarray, diagonal: bool, strength: float, folds: int) -> float:
    """Mean negative log-likelihood of samples by maps fitted without them."""
    order = np.argsort(y, kind="stable")
    fold = np.empty(len(y), int)
    fold[order] = np.arange(len(y)) % folds
    losses = []
    for k in range(folds):
        w = _minimise(x[fold != k], y[fold != k], diagonal, strength)
        p = np.exp(log_softmax(x[fold == k] @ w[:, :-1].T + w[:, -1], axis=1))
        losses.append(sample_nll(p, y[fold == k]))
    return float(np.concatenate(losses).mean())
