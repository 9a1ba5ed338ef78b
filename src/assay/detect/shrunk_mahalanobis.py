"""Mahalanobis distance under a shrunk covariance to the clean latents of the predicted class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from sklearn.covariance import ledoit_wolf_shrinkage, oas
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.layers import captured, chosen_layers, latents, pooled
from assay.detect.mahalanobis import PROBE, TiedGaussian
from assay.runtime.errors import InputError

Shrinkage = Literal["oas", "ledoit-wolf"] | float


def shrunk(centred: Float[Tensor, "n d"], shrinkage: Shrinkage) -> tuple[Float[Tensor, "d d"], float]:
    """(1 - b) S + b tr(S) / d I of centred samples, S = mean of z z^T, and b."""
    if shrinkage == "oas":
        b = float(oas(centred.numpy(), assume_centered=True)[1])
    elif shrinkage == "ledoit-wolf":
        b = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
    else:
        b = float(shrinkage)
    s = centred.T @ centred / len(centred)
    return (1 - b) * s + b * s.trace() / len(s) * torch.eye(len(s), dtype=s.dtype), b


def class_means(
    f: Float[Tensor, "n d"], predicted: Int[Tensor, " n"], classes: int, *, per_class: bool = True
) -> Float[Tensor, "c d"]:
    """The mean of each predicted class; the mean of all for classes with fewer than two samples, or throughout."""
    count = predicted.bincount(minlength=classes)
    own = f.new_zeros(classes, f.shape[1]).index_add_(0, predicted, f) / count.clamp_min(1)[:, None]
    alone = (count < 2) | (not per_class)
    return torch.where(alone[:, None], f.mean(0), own)


def own_distances(gaussian: TiedGaussian, f: Float[Tensor, "n d"], predicted: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(z - mu)^T M_b^{-1} (z - mu), mu of the predicted class; at b = 0 with the pseudo-inverse."""
    return (f @ gaussian.whitener_ - gaussian.centres_[predicted]).square().sum(1)


@dataclass(kw_only=True)
class FittedShrunkMahalanobis(FittedDetector):
    """``gaussian_`` holds a mean for every class of the model and the whitened covariance; ``shrinkage_`` is b."""

    layer_: str = ""
    gaussian_: TiedGaussian = field(default_factory=lambda: TiedGaussian.of(*2 * [torch.zeros(1, 1)]))
    shrinkage_: float = 0.0

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        with captured(self.model, [self.layer_]) as caught:
            logits = self.model(x)
        return own_distances(self.gaussian_, pooled(caught[self.layer_]).double().cpu(), logits.argmax(1).cpu())

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        f, logits = latents(self.model, x, self.layer_, batch_size=self.batch_size)
        return own_distances(self.gaussian_, f, logits.argmax(1))


@dataclass(frozen=True, kw_only=True)
class ShrunkMahalanobis(Detector):
    """Shrunk-covariance Mahalanobis, SCM (Xian et al., 2023, A Unified Detection Framework for Inference-Stage Backdoor
    Defenses): the distance of a query's latent to clean latents, for triggers of unknown direction.

    ``layer``: "penultimate" (the last after a ReLU) or a dotted name; maps are averaged over space. The covariance S of
    the fit data's latents is shrunk to M_b = (1 - b) S + b tr(S) / d I: ``shrinkage`` is b in [0, 1], or "oas" (Chen et
    al., 2010) or "ledoit-wolf" (2004), which choose it. With ``per_class`` the mean is that of the class that the model
    predicts, since a triggered input lands among the target's; the paper does not fix the target of the shrinkage nor
    this. Labels are not read: the fit data are a few clean validation samples. Shapes and errors: see Detector.
    """

    finds: ClassVar[tuple[str, ...]] = ("shifts", "triggers")

    layer: str = "penultimate"
    shrinkage: Shrinkage = "oas"
    per_class: bool = True

    def gaussian(
        self, f: Float[Tensor, "n d"], predicted: Int[Tensor, " n"], classes: int
    ) -> tuple[TiedGaussian, float]:
        """Means and whitened covariance of clean latents with their predicted classes, and b."""
        mean = class_means(f, predicted, classes, per_class=self.per_class)
        covariance, b = shrunk(f - mean[predicted], self.shrinkage)
        return TiedGaussian.of(mean, covariance), b

    def learn(self, model: nn.Module, data: Data) -> FittedShrunkMahalanobis:
        known = self.shrinkage in ("oas", "ledoit-wolf")
        if not known and (isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1):
            raise InputError(
                f"ShrunkMahalanobis: shrinkage={self.shrinkage!r}; expected 'oas', 'ledoit-wolf' or a number in [0, 1]"
            )
        (layer,) = chosen_layers(model, self.layer, data.x[:PROBE])
        f, logits = latents(model, data.x, layer, batch_size=self.batch_size)
        gaussian, b = self.gaussian(f, logits.argmax(1), logits.shape[1])
        return FittedShrunkMahalanobis(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            layer_=layer,
            gaussian_=gaussian,
            shrinkage_=b,
        )
