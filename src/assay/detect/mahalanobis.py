"""Mahalanobis distance to the nearest class in feature space."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector
from assay.detect.joined import FittedJoined
from assay.detect.layers import captured, chosen_layers, pooled
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating, features
from assay.runtime.statistics import point

PROBE = 32
GRID = (0.0, 0.01, 0.005, 0.002, 0.0014, 0.001, 0.0005)  # the authors' magnitudes, in normalised inputs


@dataclass(frozen=True)
class TiedGaussian:
    """Class means and one covariance, kept whitened: W W^T is the (pseudo-)inverse covariance (section 2.1, eq. 1).

    mean_ (c, d), whitener_ (d, r) with r the rank, centres_ (c, r) = mean_ W; all float64.
    """

    mean_: Float[Tensor, "c d"]
    whitener_: Float[Tensor, "d r"]
    centres_: Float[Tensor, "c r"]

    @classmethod
    def fit(
        cls, f: Float[Tensor, "n d"], y: Int[Tensor, " n"], *, shrinkage: float | None = None, rcond: float = 1e-12
    ) -> TiedGaussian:
        """Maximum likelihood over the classes that occur in ``y``: class-centred, pooled, divided by n.

        ``shrinkage`` s mixes in the mean variance: (1 - s) Sigma + s tr(Sigma) / d I. Directions whose variance is
        below ``rcond`` of the largest are left out, as in the pseudo-inverse.
        """
        f = f.double()
        if not torch.isfinite(f).all():
            raise InputError("Mahalanobis: the features hold NaN or infinite values; expected finite")
        present, which, count = y.unique(return_inverse=True, return_counts=True)
        if len(f) <= len(present):
            raise InputError(f"Mahalanobis: {len(f)} samples of {len(present)} classes; expected more samples")
        mean = f.new_zeros(len(present), f.shape[1]).index_add_(0, which, f) / count[:, None]
        centred = f - mean[which]
        covariance = centred.T @ centred / len(f)
        if shrinkage is not None:
            eye = torch.eye(len(covariance), dtype=torch.float64)
            covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / len(covariance) * eye
        return cls.of(mean, covariance, rcond=rcond)

    @classmethod
    def of(cls, mean: Float[Tensor, "c d"], covariance: Float[Tensor, "d d"], *, rcond: float = 1e-12) -> TiedGaussian:
        """The Gaussians of these float64 means and this covariance."""
        values, vectors = torch.linalg.eigh(covariance)
        keep = values > rcond * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
        whitener = vectors[:, keep] / values[keep].sqrt()
        return cls(mean, whitener, mean @ whitener)

    def distances(self, f: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Squared Mahalanobis distance to every class mean, on the CPU; differentiable."""
        white = f.cpu().double() @ self.whitener_
        return (white[:, None] - self.centres_[None]).square().sum(2)


@dataclass(kw_only=True)
class FittedMahalanobis(FittedJoined):
    """Score = sum_l weight_l (M_l - centre_l) / scale_l + bias, M_l the squared distance to the nearest class at layer
    l under its TiedGaussian; ``with_out`` gives the weights of section 2.2."""

    magnitude: float = 0.0
    gaussians_: list[TiedGaussian] = field(default_factory=list)

    def layer_scores(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n l"]:
        """min_c (f_l(x) - mu_lc)^T P_l (f_l(x) - mu_lc) for every layer, float64 on the CPU (eq. 2, negated)."""
        if self.magnitude == 0:
            found = features(self.model, x, self.layers_, batch_size=self.batch_size)
            columns = [self._nearest(g, found[name]) for name, g in zip(self.layers_, self.gaussians_, strict=True)]
        else:
            columns = []
            for name, g in zip(self.layers_, self.gaussians_, strict=True):
                moved = self._processed(x, name, g)
                columns.append(self._nearest(g, features(self.model, moved, [name], batch_size=self.batch_size)[name]))
        return torch.stack(columns, 1)

    def _nearest(self, gaussian: TiedGaussian, f: Tensor) -> Tensor:
        parts = [gaussian.distances(part).amin(1) for part in f.split(self.batch_size)]
        return torch.cat(parts)

    def _processed(self, x: Tensor, name: str, gaussian: TiedGaussian) -> Tensor:
        """Each input moved by ``magnitude`` along the sign that brings it nearer to its nearest class (section 2.2)."""
        device, parts = device_of(self.model), []
        for part in x.split(self.batch_size):
            inputs = part.detach().to(device).requires_grad_(True)
            with evaluating(self.model), torch.enable_grad(), captured(self.model, [name]) as caught:
                self.model(inputs)
                nearest = 0.5 * gaussian.distances(pooled(caught[name])).amin(1).sum()
                (gradient,) = torch.autograd.grad(nearest, inputs)
            parts.append((inputs.detach() - self.magnitude * gradient.sign()).cpu())
        return torch.cat(parts)

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """See FittedDetector; the move by ``magnitude`` is a constant here, as sign() has no slope."""
        columns = []
        for name, gaussian in zip(self.layers_, self.gaussians_, strict=True):
            moved = x if self.magnitude == 0 else x + (self._processed(x, name, gaussian).to(x) - x).detach()
            with captured(self.model, [name]) as caught:
                self.model(moved)
            columns.append(gaussian.distances(pooled(caught[name])).amin(1))
        return self.join(torch.stack(columns, 1))

    def tuned(
        self, inside: Float[Tensor, "n ..."], outside: Float[Tensor, "m ..."], magnitudes: Sequence[float] = GRID
    ) -> FittedMahalanobis:
        """``with_out`` at the best of ``magnitudes``, each >= 0 in the inputs' units (section 3.1).

        Weights are fitted on every second sample and judged on the others, by the part of the outside found when 95%
        of the inside passes, then by AUROC; the chosen magnitude's weights are fitted on all.
        """
        if not magnitudes or min(magnitudes) < 0:
            raise InputError(f"Mahalanobis.tuned: magnitudes {tuple(magnitudes)}; expected at least one, all >= 0")
        if len(magnitudes) == 1:
            return replace(self, magnitude=magnitudes[0]).with_out(inside, outside)
        found: list[tuple[float, float, float]] = []
        for magnitude in magnitudes:
            fitted = replace(self, magnitude=magnitude).with_out(inside[::2], outside[::2])
            a, b = (fitted.scores(x[1::2]).numpy() for x in (inside, outside))
            values = np.column_stack((np.r_[a, b], np.repeat([0.0, 1.0], [len(a), len(b)])))
            found.append((float((b > np.quantile(a, 0.95)).mean()), point("auroc", values), -magnitude))
        return replace(self, magnitude=-max(found)[2]).with_out(inside, outside)


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(Detector):
    """Distance to the nearest class-conditional Gaussian with tied covariance (Lee et al., 2018, arXiv:1807.03888).

    ``layers``: "all" (every representation after a ReLU), "penultimate" (the last of them), or dotted names joined by
    commas. Maps are averaged over space. ``magnitude`` is the step of the input pre-processing in the data's own units
    (0: none; the paper's grid is 0.0005 to 0.01 of normalised inputs); as in the paper the moved input is not clipped.

    Without out-data the layers are joined by ``aggregate``: "sum" adds the layers' scores, each standardised by its
    mean and standard deviation on the data fitted to; "last" takes the last layer alone. ``FittedMahalanobis.with_out``
    gives the paper's logistic weights. ``shrinkage`` in [0, 1] and ``rcond``: see TiedGaussian. Classes that do not
    occur in the data have no Gaussian. Shapes and errors: see Detector; also InputError for no more samples than
    classes that occur.
    """

    layers: str = "all"
    magnitude: float = 0.0
    aggregate: Literal["sum", "last"] = "sum"
    shrinkage: float | None = None
    rcond: float = 1e-12

    def _check(self) -> None:
        if self.magnitude < 0 or not 0 <= (self.shrinkage or 0.0) <= 1 or self.aggregate not in ("sum", "last"):
            raise InputError(
                f"Mahalanobis: magnitude={self.magnitude}, shrinkage={self.shrinkage}, aggregate={self.aggregate!r}; "
                "expected magnitude >= 0, shrinkage in [0, 1] or None, aggregate 'sum' or 'last'"
            )

    def learn(self, model: nn.Module, data: Data) -> FittedMahalanobis:
        self._check()
        layers = chosen_layers(model, self.layers, data.x[:PROBE])
        if self.aggregate == "last":
            layers = layers[-1:]
        found = features(model, data.x, layers, batch_size=self.batch_size)
        widest = max(f.shape[1] for f in found.values())
        if widest > len(data) and not self.shrinkage:
            warnings.warn(
                f"Mahalanobis: {len(data)} samples for {widest} features; the covariance is singular, set shrinkage",
                stacklevel=3,
            )
        gaussians = [
            TiedGaussian.fit(found[name], data.y, shrinkage=self.shrinkage, rcond=self.rcond) for name in layers
        ]
        fitted = FittedMahalanobis(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            magnitude=self.magnitude,
            layers_=layers,
            gaussians_=gaussians,
        )
        if len(layers) == 1:  # one layer keeps the plain squared distance
            fitted.joined_ = "one layer"
        else:
            columns = fitted.layer_scores(data.x).numpy()
            fitted.standardise(columns, "sum of scores standardised on the fit data")
        return fitted
