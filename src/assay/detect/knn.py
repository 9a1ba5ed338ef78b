"""The distance to the k-th nearest training sample in feature space."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.layers import captured, chosen_layers, pooled
from assay.detect.mahalanobis import PROBE
from assay.runtime.errors import InputError
from assay.runtime.inference import features


@dataclass(kw_only=True)
class FittedKNN(FittedDetector):
    """Score in [0, 2]. ``bank_`` (m, d) are the normalised features of the data fitted to."""

    layer_: str = ""
    k: int = 50
    bank_: Tensor = field(default_factory=lambda: torch.empty(0))

    def of_features(self, f: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The distance of normalised features to the k-th nearest of the bank, float64."""
        f = F.normalize(f.cpu().double())
        # on the sphere |a - b|^2 = 2 - 2 ab, and the square root has a slope of its own at 0
        squared = (2 - 2 * f @ self.bank_.T).clamp(min=1e-12)
        return squared.kthvalue(self.k, dim=1).values.sqrt()

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        with captured(self.model, [self.layer_]) as caught:
            self.model(x)
        return self.of_features(pooled(caught[self.layer_]))

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        found = features(self.model, x, [self.layer_], batch_size=self.batch_size)[self.layer_]
        return torch.cat([self.of_features(part) for part in found.split(self.batch_size)])


@dataclass(frozen=True, kw_only=True)
class KNN(Detector):
    """The distance to the ``k``-th nearest normalised feature (Sun et al., 2022, arXiv:2204.06507, eq. 1 and 2).

    ``layer``: "penultimate" (the last representation after a ReLU) or a dotted name; maps are averaged over space.
    k = 50 as for CIFAR-10, at most the size of the data. Shapes, ranges and errors: see Detector; InputError for k < 1.
    """

    k: int = 50
    layer: str = "penultimate"

    def learn(self, model: nn.Module, data: Data) -> FittedKNN:
        if self.k < 1:
            raise InputError(f"KNN: k is {self.k}; expected at least 1")
        layer = chosen_layers(model, self.layer, data.x[:PROBE])[-1]
        found = features(model, data.x, [layer], batch_size=self.batch_size)[layer]
        return FittedKNN(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            layer_=layer,
            k=min(self.k, len(data)),
            bank_=F.normalize(found.double()),
        )
