"""Local function approximation: an explanation is the g of a simple class that is nearest to f in a neighbourhood."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.explain.base import Explainer, check_finite, prepared
from assay.explain.lfa.features import Features
from assay.explain.lfa.neighbourhood import Gaussian, Neighbourhood
from assay.explain.lfa.sample import LocalSample, Probability, local_sample
from assay.explain.lfa.solvers import (
    Coefficients,
    Surrogate,
    anchored_least_squares,
    descend,
    least_squares,
    mean_gradient,
)
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws
from assay.training import Plan


@dataclass(frozen=True)
class LinearExplanation:
    """g(xi) = w . xi + b (or its sigmoid) around n inputs.

    ``weight_`` (n, ...) in the shape of the inputs: each element bears its feature's w, in outputs per unit of x where
    the neighbourhood is additive, in outputs otherwise. ``bias_`` and ``loss_`` (n,), float64: b, and the mean loss on
    the points that g was fitted to.
    """

    weight_: Float[Tensor, "n ..."]
    bias_: Float[Tensor, " n"]
    loss_: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class LocalFunctionApproximation(Explainer):
    """g* = argmin over g of E_xi loss(f, g, x0, xi) (Han et al., 2022, arXiv:2206.01254, definition 1, table 1).

    ``neighbourhood``: the distribution of xi. ``loss`` "squared": (f - g)^2; "gradient": |grad_xi f - grad_xi g|^2,
    which for multiplicative noise holds the factor x0. ``g`` "linear": f is the target's logit or, with ``output``
    "probability", its probability; "logistic": the sigmoid of a linear function, matched to the probability.
    ``solver`` "closed": weighted least squares, or the mean gradient; "sgd": ``plan``, what a logistic g needs.
    ``n_samples`` points for each input; ``ridge`` is relative to the mean square of the noise.

    Gradient matching leaves the intercept of a linear g free: it is set so that g = f at x0. The defaults are
    SmoothGrad; ``assay.explain.lfa`` names the settings of eight methods. Shapes and other errors: see Explainer.
    InputError where least squares has fewer points than unknowns and no ridge; a warning where the kernel leaves fewer
    effective points than features.
    """

    neighbourhood: Neighbourhood = Gaussian()
    loss: Literal["squared", "gradient"] = "gradient"
    g: Literal["linear", "logistic"] = "linear"
    output: Literal["logit", "probability"] = "logit"
    solver: Literal["closed", "sgd"] = "closed"
    n_samples: int = 1000
    ridge: float = 1e-8
    plan: Plan = Plan(epochs=1000, batch_size=1000, lr=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        choices = {
            "loss": ("squared", "gradient"),
            "g": ("linear", "logistic"),
            "output": ("logit", "probability"),
            "solver": ("closed", "sgd"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise unknown(f"{name} of {where}", str(getattr(self, name)), allowed)
        if self.n_samples < 1 or not 0 <= self.ridge < math.inf:
            raise InputError(
                f"{where}: n_samples={self.n_samples}, ridge={self.ridge}; expected n_samples >= 1, a finite ridge >= 0"
            )
        if self.loss == "squared" and isinstance(self.neighbourhood, Gaussian) and self.neighbourhood.sigma == 0:
            raise InputError(f"{where}: squared error at sigma=0; expected sigma > 0, for a point has no slope")
        self._check_solver(where)

    def _check_solver(self, where: str) -> None:
        if self.g == "logistic" and (self.solver == "closed" or self.output == "logit"):
            raise InputError(
                f"{where}: logistic g with solver={self.solver!r}, output={self.output!r}; "
                "expected solver='sgd' and output='probability'"
            )
        if self.solver == "sgd" and self.neighbourhood.anchored:
            raise InputError(f"{where}: solver 'sgd' keeps no constraint at xi = 0 and 1; expected 'closed'")

    def fit(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        target: Int[Tensor, " n"],
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
        feature_mask: Int[Tensor, "n ..."] | None = None,
    ) -> LinearExplanation:
        """The explanation of each input. Arguments as for ``attribute``.

        ``feature_mask`` gives each element the number of its feature (a superpixel), 0 to d - 1 in every sample.
        """
        where, parts = type(self).__name__, []
        with prepared(where, model, x, target, seed=seed, index=index) as (inputs, labels, draws):
            features = Features.of(where, inputs, feature_mask)
            self._check_points(where, features.d)
            f = Probability(model) if self.output == "probability" else model
            group = max(1, self.batch_size // self.neighbourhood.size(self.n_samples, features.d))
            for rows in torch.arange(len(x), device=inputs.device).split(group):
                some = features.rows(rows)
                sample = self.sample(f, inputs[rows], labels[rows], some, draws.select(rows))
                w, b = self.solve(sample, seed)
                errors = Surrogate(self.g == "logistic").errors(sample, w, b)
                parts.append((some.spread(w[:, None])[:, 0], b, (sample.weight * errors).sum(1)))
        weight, bias, loss = (torch.cat(p).to(x.device) for p in zip(*parts, strict=True))
        check_finite(where, weight)
        return LinearExplanation(weight.to(x.dtype), bias, loss)

    def attribute(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        target: Int[Tensor, " n"],
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
        feature_mask: Int[Tensor, "n ..."] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """The weights of ``fit``, in the shape, on the device and in the dtype of ``x``."""
        return self.fit(model, x, target, seed=seed, index=index, feature_mask=feature_mask).weight_

    def sample(self, f: nn.Module, x: Tensor, target: Tensor, features: Features, draws: Draws) -> LocalSample:
        """The points around some inputs, and what the loss needs of f there."""
        return local_sample(
            f,
            x,
            target,
            self.neighbourhood,
            features,
            draws,
            n_samples=self.n_samples,
            gradient=self.loss == "gradient",
            batch_size=self.batch_size,
        )

    def solve(self, sample: LocalSample, seed: int) -> Coefficients:
        """The coefficients that minimise the mean loss on the sample."""
        space, gradient = self.neighbourhood, self.loss == "gradient"
        if not gradient:
            _warn_of_few(sample)
        if self.solver == "sgd":
            w, b = descend(sample, Surrogate(self.g == "logistic", space.intercept), self.plan, seed=seed)
        elif gradient:
            w, b = mean_gradient(sample)
        elif space.anchored:
            w, b = anchored_least_squares(sample, ridge=self.ridge)
        else:
            w, b = least_squares(sample, ridge=self.ridge, intercept=space.intercept)
        if gradient and self.g == "linear" and space.intercept:
            b = sample.at_x if space.additive else sample.at_x - w.sum(1)
        return w, b

    def _check_points(self, where: str, d: int) -> None:
        points = self.neighbourhood.size(self.n_samples, d)
        unknowns = d - 1 if self.neighbourhood.anchored else d + self.neighbourhood.intercept
        if self.loss == "squared" and self.solver == "closed" and self.ridge == 0 and points < unknowns:
            raise InputError(f"{where}: {points} points for {unknowns} unknowns; expected n_samples >= {unknowns}")


def _warn_of_few(sample: LocalSample) -> None:
    effective = float((1 / sample.weight.square().sum(1)).min())
    if effective < min(sample.xi.shape[2], sample.xi.shape[1]) * (1 - 1e-9):
        warnings.warn(
            f"the kernel leaves {effective:.1f} effective points for {sample.xi.shape[2]} features: widen it",
            RuntimeWarning,
            stacklevel=3,
        )
