"""Distance to the k-th nearest training feature."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.layers import captured, chosen_layers, latents, pooled
from assay.detect.mahalanobis import PROBE
from assay.runtime.errors import InputError


@dataclass(kw_only=True)
class FittedKNN(FittedDetector):
    """``features_`` (m, d) are the fit data's, each of length 1. Score in [0, 2]."""

    k: int = 50
    layer_: str = ""
    features_: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def of_features(self, f: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The k-th smallest Euclidean distance between directions."""
        return torch.cdist(F.normalize(f, dim=1), self.features_).kthvalue(self.k, 1).values

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        with captured(self.model, [self.layer_]) as caught:
            self.model(x)
        return self.of_features(pooled(caught[self.layer_]).double().cpu())

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        f, _ = latents(self.model, x, self.layer_, batch_size=self.batch_size)
        return torch.cat([self.of_features(part) for part in f.split(self.batch_size)])


@dataclass(frozen=True, kw_only=True)
class KNN(Detector):
    """Deep nearest neighbours (Sun et al., 2022, arXiv:2204.06507, algorithm 1): the distance of z / ||z|| to its k-th
    nearest among the fit data's, z the features at ``layer`` ("penultimate" or a dotted name; maps are averaged over
    space).

    ``k`` = 50 is the paper's for CIFAR-10. An input that is among the fit data counts itself. Shapes and errors: see
    Detector; also InputError where the fit data have fewer than ``k`` samples.
    """

    k: int = 50
    layer: str = "penultimate"

    def learn(self, model: nn.Module, data: Data) -> FittedKNN:
        if not 1 <= self.k <= len(data):
            raise InputError(f"KNN: k={self.k} for {len(data)} samples; expected 1 to {len(data)}")
        (layer,) = chosen_layers(model, self.layer, data.x[:PROBE])
        f, _ = latents(model, data.x, layer, batch_size=self.batch_size)
        return FittedKNN(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            k=self.k,
            layer_=layer,
            features_=F.normalize(f, dim=1),
        )
