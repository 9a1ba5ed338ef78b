"""Robust self-supervised training: few labels, and a pool without labels that may come from a shifted distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.robust_surrogate import robust_surrogate
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.training import Plan, State, fit


def robust_margin_loss(margin: Float[Tensor, " n"], gamma: float) -> Float[Tensor, " n"]:
    """phi_gamma = min(1, max(0, 1 - gamma y<th, X>)) of margins y<th, X> with |th| = 1 (Saberi et al., 2024,
    arXiv:2310.00027): the zero-one loss of the worst Z, sup_Z 1{y<th, Z> <= 0} - gamma |Z - X|.

    ``gamma`` > 0; infinite, it is the zero-one loss itself, which has no slope. Values in [0, 1]. InputError for gamma
    <= 0 and margins that are not (n,).
    """
    if margin.dim() != 1 or not gamma > 0:
        raise InputError(f"robust_margin_loss: margin {tuple(margin.shape)}, gamma={gamma}; expected (n,), gamma > 0")
    if gamma == math.inf:
        return (margin <= 0).to(margin) + 0 * margin
    return (1 - gamma * margin).clamp(0, 1)


class Direction(nn.Module):
    """Logits (-f/2, f/2), f = <th, x> / |th|: a linear rule through 0 whose norm means nothing."""

    def __init__(self, theta: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        f = x @ (self.theta / self.theta.norm()) / 2
        return torch.stack((-f, f), 1)


@dataclass(frozen=True)
class FittedRSS:
    """``model_`` maps (n, ...) to logits (n, c); ``classes_`` (c,) are the labels in the order of its columns."""

    model_: nn.Module
    classes_: np.ndarray

    @property
    def coef_(self) -> Float[np.ndarray, " d"]:
        """The unit direction of the linear form. InputError for a network."""
        if not isinstance(self.model_, Direction):
            raise InputError(f"coef_: the model is a {type(self.model_).__name__}; expected base='linear'")
        theta = self.model_.theta.detach()
        return (theta / theta.norm()).numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (n, c); with two classes that of the second less that of the first (n,)."""
        x, model = _floats("decision_function", X), self.model_
        if isinstance(model, Direction) and x.shape[1:] != model.theta.shape:
            raise InputError(f"decision_function: x {tuple(x.shape)}; expected (n, {len(model.theta)}), as fitted")
        logits = predict(model, x).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, X: Any) -> np.ndarray:
        """The labels (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def score(self, X: Any, y: Any) -> float:
        """Accuracy on labels (n,)."""
        return float(np.mean(self.predict(X) == np.asarray(y)))


@dataclass(frozen=True, kw_only=True)
class RobustSelfSupervised:
    """mean phi_gamma(X_i, y_i) + ``lam`` x mean phi_gamma_u(X'_j, h(X'_j)) (Saberi et al., 2024, arXiv:2310.00027).

    h is the current rule's own decision, taken anew at every step, so that the second term keeps the boundary out of
    dense regions of the pool. ``base="linear"``: labels of two values, phi as ``robust_margin_loss`` has it, of th
    divided by its norm, started at the labelled mean direction (1/m) sum y_i X_i, which alone fixes the sign. A module
    as ``base``: logits (n, c), phi as ``robust_surrogate`` has it with ``inner_steps`` of size ``step_size``, started
    from the module's weights, which should come from the labelled samples. The labelled term sees all labelled samples
    at each of ``steps`` steps of Adam at rate ``lr``, the other one a batch of the pool.

    ``gamma`` = inf is the non-robust case: the linear form then has the zero-one loss, without slope, on the labelled
    samples. ``lam=0`` is empirical risk minimisation without a pool. ``balance`` >= 0 weighs the squared distance of
    the pool's mean softmax to the class shares of the labels (not in the paper; off). The official code leaves the
    norm free under weight decay and starts at random; here gamma has its meaning. InputError for other options, for
    X (m, ...) that is not finite, one class, no pool while lam > 0, and a pool with other features.
    """

    kind: ClassVar[str] = "function"

    gamma: float = math.inf
    gamma_u: float = 0.3
    lam: float = 10.0
    steps: int = 300
    lr: float = 0.02
    batch_size: int = 1000
    base: Literal["linear"] | nn.Module = "linear"
    inner_steps: int = 10
    step_size: float = 0.1
    balance: float = 0.0

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not (self.gamma > 0 and self.gamma_u > 0 and 0 <= self.lam < math.inf and 0 <= self.balance < math.inf):
            given = f"gamma={self.gamma}, gamma_u={self.gamma_u}, lam={self.lam}, balance={self.balance}"
            raise InputError(f"{where}: {given}; expected gammas > 0, finite weights >= 0")
        if self.inner_steps < 1 or not 0 < self.step_size < math.inf:
            given = f"inner_steps={self.inner_steps}, step_size={self.step_size}"
            raise InputError(f"{where}: {given}; expected inner_steps >= 1, a finite step_size > 0")
        if self.base != "linear" and not isinstance(self.base, nn.Module):
            raise InputError(f"{where}: base={self.base!r}; expected 'linear' or a module")

    def fit(self, X: Any, y: Any, X_unlabeled: Any = None, *, seed: int = 0) -> FittedRSS:
        """Learn from X (m, ...), labels y (m,) of any values, and the pool (n, ...); ``seed`` orders the pool."""
        where = type(self).__name__
        x, labels = _floats(where, X), np.asarray(y)
        if labels.shape != (len(x),):
            raise InputError(f"{where}: labels {labels.shape} for {len(x)} samples; expected one each")
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2 or (self.base == "linear" and len(classes) > 2):
            wanted = "two" if self.base == "linear" else "two or more"
            raise InputError(f"{where}: {len(classes)} classes; expected {wanted}")
        target = torch.from_numpy(codes)
        start = _mean_direction(x, target) if isinstance(self.base, str) else self.base
        pool = self._pool(x, X_unlabeled, start, classes.tolist())
        plan = Plan(steps=self.steps, batch_size=self.batch_size, lr=self.lr, schedule="constant")
        shares = torch.bincount(target, minlength=len(classes)) / len(target)
        objective = partial(self.objective, x=x, y=target, shares=shares)
        return FittedRSS(fit(start, pool, objective, plan, seed=seed), classes)

    def objective(
        self, model: nn.Module, batch: Batch, state: State, *, x: Tensor, y: Tensor, shares: Tensor
    ) -> Float[Tensor, ""]:
        """Both terms, on all labelled samples and a batch of the pool."""
        loss = self.phi(model, x, y, self.gamma).mean()
        if self.lam > 0:
            loss = loss + self.lam * self.phi(model, batch.x, self.guess(model, batch), self.gamma_u).mean()
        if self.balance > 0:
            loss = loss + self.balance * (model(batch.x).softmax(1).mean(0) - shares).square().sum()
        return loss

    @torch.no_grad()
    def guess(self, model: nn.Module, batch: Batch) -> Int[Tensor, " b"]:
        """The labels that stand in for the pool's: the current rule's own."""
        return model(batch.x).argmax(1)

    def phi(self, model: nn.Module, x: Tensor, y: Int[Tensor, " n"], gamma: float) -> Float[Tensor, " n"]:
        """The robust loss of each sample."""
        if isinstance(model, Direction):
            logits = model(x)
            return robust_margin_loss((2 * y - 1) * (logits[:, 1] - logits[:, 0]), gamma)
        return robust_surrogate(model, x, y, gamma, steps=self.inner_steps, step_size=self.step_size)[0]

    def _pool(self, x: Tensor, unlabeled: Any, start: nn.Module, classes: Sequence[object]) -> Data:
        """The pool, with the start's own decisions as labels; the labelled samples where the pool has no weight."""
        where = type(self).__name__
        if unlabeled is None and (self.lam > 0 or self.balance > 0):
            raise InputError(f"{where}: no pool, lam={self.lam}, balance={self.balance}; expected X_unlabeled")
        without = unlabeled is None or (len(unlabeled) == 0 and self.lam == self.balance == 0)
        rows = x if without else _floats(where, unlabeled)
        if rows.shape[1:] != x.shape[1:]:
            raise InputError(
                f"{where}: pool {tuple(rows.shape)}, labelled {tuple(x.shape)}; expected the same features"
            )
        logits = predict(start, rows)
        if logits.shape[1] != len(classes):
            raise InputError(f"{where}: {logits.shape[1]} logits for {len(classes)} classes; expected one each")
        return Data(rows, logits.argmax(1), tuple(map(str, classes)), (-math.inf, math.inf), "pool")


def _mean_direction(x: Float[Tensor, "m d"], y: Int[Tensor, " m"]) -> Direction:
    if x.dim() != 2:
        raise InputError(f"RobustSelfSupervised: x has shape {tuple(x.shape)}; expected (m, d) for base='linear'")
    theta = ((2 * y - 1)[:, None] * x).mean(0)
    if not theta.any():
        raise InputError("RobustSelfSupervised: the labelled mean direction is 0; expected classes with other means")
    return Direction(theta)


def _floats(where: str, values: Any) -> Float[Tensor, "n ..."]:
    given = values.detach().cpu() if isinstance(values, Tensor) else np.asarray(values)
    x = torch.as_tensor(given, dtype=torch.float32)
    check_inputs(where, x)
    return x
