"""Ensemble temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

from assay.calibrate.base import CalibrationMap, Calibrator, Outputs
from assay.calibrate.one_vs_rest import FLOOR
from assay.calibrate.temperature import FittedTemperature, TemperatureScaling
from assay.runtime.spec import rebuildable


@rebuildable
class EnsembleMap(CalibrationMap):
    """``weights_`` (3,) on the simplex, of softmax(z / ``temperature_``), softmax(z) and the uniform distribution."""

    temperature_: Tensor
    weights_: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes
        self.register_buffer("temperature_", torch.ones((), dtype=torch.float64))
        self.register_buffer("weights_", torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return self._classes

    def parts(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c 3"]:
        """The three distributions that are mixed."""
        scaled, plain = (logits / self.temperature_).softmax(1), logits.softmax(1)
        return torch.stack((scaled, plain, torch.full_like(plain, 1 / logits.shape[1])), 2)

    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits, in float64."""
        return (self.parts(logits) @ self.weights_).clamp_min(FLOOR).log()


@dataclass(frozen=True, kw_only=True)
class EnsembleTemperatureScaling(Calibrator):
    """w1 softmax(z / T) + w2 softmax(z) + w3 / c, w on the simplex (Zhang, Kailkhura & Han, 2020, arXiv:2003.07329,
    section 4): four numbers, of which T is fitted first, by temperature scaling, then w.

    Both by maximum likelihood; the authors' code also offers squared error. The order of the classes is kept, so
    predictions are too. Samples that temperature scaling gives w = (1, 0, 0) start there: it is never worse.
    """

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> EnsembleMap:
        scaled = TemperatureScaling().fit(outputs, y)
        assert isinstance(scaled, FittedTemperature)
        fitted = EnsembleMap(outputs.classes)
        fitted.temperature_.fill_(scaled.temperature_)
        likelihood = fitted.parts(outputs.logits.double())[torch.arange(len(y)), y].clamp_min(FLOOR).numpy()

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            p = likelihood @ w
            return float(-np.log(p).mean()), -(likelihood / p[:, None]).mean(0)

        simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
        bounds = [(0.0, 1.0)] * 3
        options = {"ftol": 1e-14, "maxiter": 500}
        found = minimize(
            loss, np.full(3, 1 / 3), jac=True, method="SLSQP", bounds=bounds, constraints=[simplex], options=options
        )
        w = np.clip(found.x, 0, None) / np.clip(found.x, 0, None).sum()
        best = min((w, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])), key=lambda v: loss(v)[0])
        fitted.weights_.copy_(torch.from_numpy(best))
        return fitted
