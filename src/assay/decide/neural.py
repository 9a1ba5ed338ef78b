"""What the neural learners share: one network a lane, one online regressor, an arm drawn from its predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.decide.base import Action, Learner, Policy
from assay.decide.online_regressor import OnlineRegressor
from assay.decide.perturbed_net import PerturbedNet
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NeuralLearner(Learner):
    """A learner that regresses costs online. Fields: those of PerturbedNet and OnlineRegressor.

    A method says how predicted costs (b, K) become ``probabilities`` (b, K), or brings its own policy. ``depth=0``
    makes it linear.
    """

    contract: ClassVar[bool] = True

    width: int = 100
    depth: int = 2
    activation: Literal["relu", "tanh", "softplus"] = "relu"
    scaling: Literal["standard", "theory"] = "standard"
    loss: Literal["square", "kl"] = "square"
    lr: float = 0.1
    schedule: Literal["constant", "inverse"] = "constant"
    c_p: float = 0.1
    copies: int = 10
    rho: float = math.inf
    window: int = 1
    passes: int = 1
    average: Literal["losses", "predictions"] = "losses"

    def policy(self, arms: int, features: int, seeds: Sequence[int]) -> Policy:
        """One network a seed. InputError for options out of range."""
        if features < 1:
            raise InputError(f"{type(self).__name__}: {features} features; expected a context of at least 1 an arm")
        return NeuralPolicy(self, arms, features, seeds)

    def regressor(self, features: int, seeds: Sequence[int]) -> OnlineRegressor:
        """The fresh online regressor of a policy."""
        shape: dict[str, Any] = {"activation": self.activation, "scaling": self.scaling, "c_p": self.c_p}
        net = PerturbedNet(features, width=self.width, depth=self.depth, seeds=seeds, **shape)
        return OnlineRegressor(
            net,
            loss=self.loss,
            lr=self.lr,
            schedule=self.schedule,
            copies=self.copies,
            rho=self.rho,
            window=self.window,
            passes=self.passes,
            average=self.average,
            seeds=seeds,
        )

    def probabilities(self, yhat: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The arms' probabilities given their predicted costs, float64."""
        raise TypeError(f"{type(self).__name__} does not choose from predicted costs alone")


class NeuralPolicy(Policy):
    """A neural learner at work; ``regressor_`` is what it has learned."""

    def __init__(self, learner: NeuralLearner, arms: int, features: int, seeds: Sequence[int]) -> None:
        super().__init__(arms, features, seeds)
        self.learner = learner
        self.regressor_ = learner.regressor(features, seeds)

    def act(self, context: Tensor | None = None) -> Action:
        """Predict every arm's cost, and draw from the method's probabilities."""
        x = self.check_context(type(self.learner).__name__, context)
        return self.draw(self.distribution(x.to(self.regressor_.net.theta)))

    def distribution(self, x: Tensor) -> Float[Tensor, "b k"]:
        """The arms' probabilities in this context."""
        return self.learner.probabilities(self.regressor_.predict(x))

    def update(self, context: Tensor | None, arm: Int[Tensor, " b"], cost: Float[Tensor, " b"]) -> None:
        """One update of the regressor on the arm that was played."""
        where = type(self.learner).__name__
        x = self.check_context(where, context).to(self.regressor_.net.theta)
        self.check_outcome(where, arm, cost)
        self.regressor_.update(*self.played(x, arm, cost))

    def played(self, x: Tensor, arm: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The regressor's input, target and block for the arm that was played, n = 1."""
        target = cost[:, None].to(x)
        if x.dim() == 2:
            return x[:, None], target, arm[:, None]
        return x[torch.arange(len(x)), arm][:, None], target, None
