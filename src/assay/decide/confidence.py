"""How far a network's prediction may be off: the norm of its gradient in the inverse covariance of those seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.decide.base import Policy
from assay.decide.neural import NeuralLearner, NeuralPolicy
from assay.runtime.errors import InputError, unknown

LARGEST = 5000  # parameters of a network whose full covariance is kept


@dataclass(frozen=True, kw_only=True)
class ConfidenceLearner(NeuralLearner):
    """A learner that weighs a prediction with its width nu sqrt(g^T Z^-1 g / m), g the gradient of f in theta.

    Z starts at ``lam`` I and gains g g^T / m of every arm played; ``covariance="diagonal"`` keeps its diagonal only,
    "full" its inverse (up to 5000 parameters). The gradient is taken at the "current" or the "initial" weights.
    """

    contract: ClassVar[bool] = True

    nu: float = 0.1
    lam: float = 1.0
    covariance: Literal["diagonal", "full"] = "diagonal"
    gradient: Literal["current", "initial"] = "current"
    c_p: float = 0.0

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not (self.nu >= 0 and self.lam > 0):
            raise InputError(f"{where}: nu={self.nu}, lam={self.lam}; expected nu >= 0 and lam > 0")
        if self.covariance not in ("diagonal", "full"):
            raise unknown(f"covariance of {where}", self.covariance, ("diagonal", "full"))
        if self.gradient not in ("current", "initial"):
            raise unknown(f"gradient of {where}", self.gradient, ("current", "initial"))

    def policy(self, arms: int, features: int, seeds: Sequence[int]) -> Policy:
        """InputError for a full covariance of too many parameters."""
        return ConfidencePolicy(self, arms, features, seeds)

    def scores(self, yhat: Tensor, width: Tensor, policy: Policy) -> Float[Tensor, "b k"]:
        """What the arm to play is least in, from predicted costs and widths (b, K)."""
        raise TypeError(f"{type(self).__name__} has no scores")


class ConfidencePolicy(NeuralPolicy):
    """``z_``: the diagonal of Z (b, p), or for a full covariance the inverse of Z (b, p, p)."""

    learner: ConfidenceLearner

    def __init__(self, learner: ConfidenceLearner, arms: int, features: int, seeds: Sequence[int]) -> None:
        if features < 1:
            raise InputError(f"{type(learner).__name__}: {features} features; expected at least 1 an arm")
        super().__init__(learner, arms, features, seeds)
        theta = self.regressor_.net.theta.detach()
        self.full = learner.covariance == "full"
        if self.full and theta.shape[1] > LARGEST:
            raise InputError(f"full covariance of {theta.shape[1]} parameters; expected at most {LARGEST}")
        eye = torch.eye(theta.shape[1], dtype=theta.dtype) if self.full else torch.empty(0)
        self.z_ = eye.repeat(len(seeds), 1, 1) / learner.lam if self.full else torch.full_like(theta, learner.lam)

    def _anchor(self) -> Tensor | None:
        return self.regressor_.net.theta_0 if self.learner.gradient == "initial" else None

    @torch.no_grad()
    def widths(self, x: Tensor) -> Float[Tensor, "b k"]:
        """nu sqrt(g^T Z^-1 g / m) of every arm."""
        net = self.regressor_.net
        at = net.linearise(x, theta=self._anchor())
        if self.full:
            g = net.gradients(at)
            square = ((g @ self.z_) * g).sum(2)
        else:
            square = net.quadratic(at, 1 / self.z_)
        return self.learner.nu * (square / net.width).clamp(min=0).sqrt()

    def distribution(self, x: Tensor) -> Float[Tensor, "b k"]:
        """All on the arm of least score."""
        scores = self.learner.scores(self.regressor_.predict(x), self.widths(x), self)
        return torch.nn.functional.one_hot(scores.argmin(1), self.arms).double()

    def update(self, context: Tensor | None, arm: Int[Tensor, " b"], cost: Float[Tensor, " b"]) -> None:
        """Z gains the gradient with which the arm was chosen; then the regressor learns."""
        where = type(self.learner).__name__
        x = self.check_context(where, context).to(self.regressor_.net.theta)
        self.check_outcome(where, arm, cost)
        rows, target, block = self.played(x, arm, cost)
        self._observe(rows, block)
        self.regressor_.update(rows, target, block)

    @torch.no_grad()
    def _observe(self, rows: Tensor, block: Tensor | None) -> None:
        net = self.regressor_.net
        g = net.gradients(net.linearise(rows, block, self._anchor()))[:, 0]
        if not self.full:
            self.z_ += g * g / net.width
            return
        u = (self.z_ @ g[..., None])[..., 0]  # Sherman-Morrison
        self.z_ -= u[:, :, None] * u[:, None] / (net.width + (u * g).sum(1))[:, None, None]
