"""Data made useless to train on by raising the Bayes error of their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.linear_head import linear_head, watching
from assay.data import Data
from assay.losses import KernelBayesError
from assay.privacy.unlearnable.base import Protected, Protector
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Supervised, Trainer

HALVINGS = 5  # of a step that would lower the estimate, before it is left out


def _recipe() -> Supervised:
    return Supervised(epochs=30, optimizer="sgd", lr=0.1, weight_decay=5e-4, batch_size=128)


@dataclass(frozen=True)
class ProtectedByBayesError(Protected):
    """With the estimated Bayes errors of the data before and after, each under an encoder that was trained on these
    data and took no part in the displacing, and that under each step's encoder, before the step."""

    bayes_error_before_: float
    bayes_error_after_: float
    history_: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class BayesErrorUnlearnable(Protector):
    """Climb the estimated Bayes error of the data, all samples together (Zhang et al., 2025, arXiv:2511.08191).

    Each of ``steps`` steps trains a fresh network like ``encoder`` by ``recipe`` on the data as they are displaced by
    then, estimates the Bayes error (``estimator``) on the inputs of its linear head, divided by the largest magnitude
    among all of them, and moves every sample by ``step_size`` (absent: 2.5 eps / steps) along the gradient: its signs,
    or its direction in l2. With ``retrain`` false the first network, trained on the clean data, serves all steps, which
    merely attacks it. No encoder: the estimate is made on the inputs, not rescaled. ``monotone`` halves a step under
    which the estimate falls, five times, then leaves it out, so that no step lowers it under its own encoder.
    ``optimizer`` "adamw" takes AdamW's steps of size ``step_size`` (absent: 1e-3) without decay, as the authors' script
    does over two steps, with decay 0.01: steps of 1e-3 need 31 to reach 8/255. The divisor is held constant.

    Displacements are in the ball and the bounds exactly. What is raised is an estimate from finite data under one kind
    of encoder; a raised error need not lower a learner's accuracy on clean data: report both. Options of the ball: see
    Protector. Raises InputError for options out of range, a class of one sample, and what the estimator raises.
    """

    encoder: nn.Module | None = None
    recipe: Trainer = field(default_factory=_recipe)
    estimator: KernelBayesError = field(default_factory=KernelBayesError)
    steps: int = 10
    step_size: float | None = None
    retrain: bool = True
    monotone: bool = False
    optimizer: Literal["sign", "adamw"] = "sign"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in ("sign", "adamw"):
            raise unknown("optimizer of BayesErrorUnlearnable", str(self.optimizer), ("sign", "adamw"))
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise InputError(
                f"BayesErrorUnlearnable: steps={self.steps}, step_size={self.step_size}; expected steps >= 1, size > 0"
            )

    def fit(self, data: Data, *, seed: int) -> ProtectedByBayesError:
        """The protected data with the Bayes errors."""
        self.check(data)
        ball, moving, history = self.ball(), data.x.clone().requires_grad_(), list[float]()
        size = self.step_size or (2.5 * self.eps / self.steps if self.optimizer == "sign" else 1e-3)
        adam = torch.optim.AdamW([moving], lr=size, weight_decay=0.0, maximize=True)
        network: nn.Module | None = None
        for k in range(self.steps):
            now = data.with_x(moving.detach().clone())
            if network is None or self.retrain:
                network = self.trained(now, seed=derive(seed, "encoder", k))
            value, gradient = self.gradient(network, now)
            history.append(value)
            if self.optimizer == "sign":
                ahead = now.x + size * ball.ascent(gradient, now.x, data.bounds)
            else:
                ahead = _stepped(adam, moving, gradient)
            reached = ball.project(ahead, data.x, data.bounds)
            if self.monotone:
                reached = self._backtracked(network, now, reached, value)
            with torch.no_grad():
                moving.copy_(reached)
        protected = data.with_x(moving.detach().clone())
        before, after = (self.bayes_error(d, seed=derive(seed, "fresh")) for d in (data, protected))
        return ProtectedByBayesError(protected, before, after, tuple(history))

    def trained(self, data: Data, *, seed: int) -> nn.Module | None:
        """A fresh network trained on ``data``; None where the estimate is made on the inputs."""
        return None if self.encoder is None else self.recipe.fit(fresh(self.encoder, seed=seed), data, seed=seed)

    def bayes_error(self, data: Data, *, seed: int) -> float:
        """The estimate under a fresh encoder trained on ``data``."""
        points = self._points(self.trained(data, seed=seed), data)
        return self.estimator(points / self._scale(points), data.y)

    def gradient(self, network: nn.Module | None, data: Data) -> tuple[float, Float[Tensor, "n ..."]]:
        """The estimate on ``data`` under ``network`` and its gradient in the inputs."""
        points = self._points(network, data)
        scale = self._scale(points)
        value, g = self.estimator.gradient(points / scale, data.y)
        g = (g / scale).to(data.x)
        if network is None:
            return value, g.view_as(data.x)
        head, batches = linear_head(network, data.x[:2].to(device_of(network))), range(0, len(g), BATCH)
        with evaluating(network), watching(network, head) as look:
            parts = [_pulled(look, data.x[i : i + BATCH].to(device_of(network)), g[i : i + BATCH]) for i in batches]
        return value, torch.cat(parts)

    def _points(self, network: nn.Module | None, data: Data) -> Float[Tensor, "n d"]:
        if network is None:
            return data.x.flatten(1)
        device = device_of(network)
        head = linear_head(network, data.x[:2].to(device))
        with evaluating(network), torch.no_grad(), watching(network, head) as look:
            return torch.cat([look(x.to(device))[0].cpu() for x in data.x.split(BATCH)])

    def _scale(self, points: Tensor) -> float:
        scale = 1.0 if self.encoder is None else float(points.abs().max())
        if not scale > 0:
            raise InputError("BayesErrorUnlearnable: all features are 0; expected a network that tells samples apart")
        return scale

    def _backtracked(self, network: nn.Module | None, now: Data, reached: Tensor, value: float) -> Tensor:
        """The displaced inputs, drawn back towards where they were until the estimate does not fall."""
        for halving in range(HALVINGS + 1):
            trial = now.x + (reached - now.x) / 2**halving
            points = self._points(network, now.with_x(trial))
            if self.estimator(points / self._scale(points), now.y) >= value:
                return trial
        return now.x


def _pulled(look: object, x: Tensor, g: Tensor) -> Tensor:
    """The gradient in the inputs from that in the features."""
    assert callable(look)
    z = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(look(z)[0], z, g.to(x))
    return found.cpu()


def _stepped(adam: torch.optim.AdamW, moving: Tensor, gradient: Tensor) -> Tensor:
    """Where AdamW goes from ``moving``."""
    moving.grad = gradient.clone()
    adam.step()
    return moving.detach().clone()
