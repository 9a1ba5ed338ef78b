"""The one-class support vector machine on a network's features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.layers import captured, chosen_layers, pooled
from assay.detect.mahalanobis import PROBE
from assay.runtime.errors import InputError
from assay.runtime.inference import features


@dataclass(kw_only=True)
class FittedOneClassSVM(FittedDetector):
    """Score: any real number, above 0 outside the support. sum_i a_i exp(-g |f - f_i|^2) is what it falls with."""

    layer_: str = ""
    support_: Tensor = field(default_factory=lambda: torch.empty(0))
    weight_: Tensor = field(default_factory=lambda: torch.empty(0))
    offset_: float = 0.0
    gamma_: float = 1.0

    def of_features(self, f: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The score of features, float64."""
        distance = torch.cdist(f.cpu().double(), self.support_, compute_mode="donot_use_mm_for_euclid_dist")
        return self.offset_ - (-self.gamma_ * distance.square()).exp() @ self.weight_

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        with captured(self.model, [self.layer_]) as caught:
            self.model(x)
        return self.of_features(pooled(caught[self.layer_]))

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        found = features(self.model, x, [self.layer_], batch_size=self.batch_size)[self.layer_]
        return torch.cat([self.of_features(part) for part in found.split(self.batch_size)])


@dataclass(frozen=True, kw_only=True)
class OneClassSVM(Detector):
    """The nu-SVM of one class with a Gaussian kernel (Schoelkopf et al., 2001), scikit-learn's, on features.

    ``nu`` in (0, 1] bounds the share of the data left outside; the kernel is exp(-g |f - f_i|^2), g = ``gamma`` / (d
    var): 1 is scikit-learn's "scale", too wide for features that lie in clusters. ``layer``: "penultimate" or a dotted
    name. Shapes and errors: see Detector; InputError for nu or gamma out of range.
    """

    nu: float = 0.1
    gamma: float = 10.0
    layer: str = "penultimate"

    def learn(self, model: nn.Module, data: Data) -> FittedOneClassSVM:
        from sklearn.svm import OneClassSVM as Machine

        if not 0 < self.nu <= 1 or not self.gamma > 0:
            raise InputError(f"OneClassSVM: nu={self.nu}, gamma={self.gamma}; expected nu in (0, 1], gamma > 0")
        layer = chosen_layers(model, self.layer, data.x[:PROBE])[-1]
        found = features(model, data.x, [layer], batch_size=self.batch_size)[layer].double().numpy()
        gamma = self.gamma / max(found.shape[1] * float(found.var()), 1e-12)
        machine: Any = Machine(nu=self.nu, gamma=gamma).fit(found)
        return FittedOneClassSVM(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            layer_=layer,
            support_=torch.from_numpy(machine.support_vectors_.copy()),
            weight_=torch.from_numpy(machine.dual_coef_[0].copy()),
            offset_=float(-machine.intercept_[0]),
            gamma_=gamma,
        )
