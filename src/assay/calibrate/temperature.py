"""Temperature scaling, and the model that carries its temperature with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq
from torch import Tensor, nn

from assay.calibrate.base import Calibrator, FittedCalibrator, Outputs
from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import check_logits, device_of, predict
from assay.runtime.spec import rebuildable, spec_of
from assay.subject import Subject


@rebuildable
class Calibrated(nn.Module):
    """``model`` with its logits divided by ``temperature`` (> 0): the same decisions, other confidences.

    The temperature is a buffer: it is saved with the weights, and training does not move it.
    """

    temperature: Tensor

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise InputError(f"Calibrated: temperature is {temperature}; expected a finite number above 0")
        self.model = model
        self.register_buffer("temperature", torch.tensor(float(temperature), device=device_of(model)))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.model(x) / self.temperature


@dataclass(frozen=True)
class FittedTemperature(FittedCalibrator):
    """``temperature_`` (> 0); ``standard_error_`` of it (None where it lies on the edge of the range searched)."""

    temperature_: float
    standard_error_: float | None

    def transform(self, outputs: Outputs) -> Float[Tensor, "n c"]:
        """Logits / T (n, c), float64."""
        return outputs.logits.double() / self.temperature_


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling(Calibrator):
    """One temperature for all logits, by maximum likelihood (Guo et al., 2017, arXiv:1706.04599, section 4.2, eq. 9).

    With b = 1 / T the mean negative log-likelihood mean(logsumexp(b z) - b z_y) is convex in b; its derivative
    mean(E_softmax(bz)[z] - z_y) is increasing, so its root is bracketed and found in float64 to ~1e-14. T is sought in
    [``lowest``, ``highest``]: on samples that are all classified right the optimum lies at 0, and is cut there; logits
    that say nothing (each row constant) keep T = 1.
    """

    lowest: float = 0.01
    highest: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= 1 <= self.highest < float("inf"):
            raise InputError(
                f"TemperatureScaling: range [{self.lowest}, {self.highest}]; expected 0 < lowest <= 1 <= highest"
            )

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedTemperature:
        z = outputs.logits.double()
        z = z - z.gather(1, y[:, None])  # shifts of a row change nothing, and z_y = 0 keeps the sums accurate

        def slope(b: float) -> float:
            return float(_slopes(z, b).mean())

        if not z.any():  # constant rows: the likelihood does not depend on T
            return FittedTemperature(1.0, None)
        cold, hot = slope(1 / self.lowest), slope(1 / self.highest)
        if cold <= 0:
            return FittedTemperature(self.lowest, None)
        if hot >= 0:
            return FittedTemperature(self.highest, None)
        b = float(brentq(slope, 1 / self.highest, 1 / self.lowest, xtol=1e-14, rtol=1e-14, maxiter=500))
        return FittedTemperature(1 / b, _standard_error(z, b))

    def apply(self, model: nn.Module, data: Data) -> nn.Module:
        """A copy of ``model`` that divides its logits by the temperature fitted on ``data``."""
        check_logits(type(self).__name__, model, data.x[:1])
        fitted = self.fit(Outputs(predict(model, data.x)), data.y)
        assert isinstance(fitted, FittedTemperature)
        return calibrated(model, fitted.temperature_)

    def control(self, subject: Subject, *, seed: int) -> nn.Module:
        """The same wrapper with a temperature of 1: the ingredient left out."""
        return calibrated(subject.model, 1.0)


def calibrated(model: nn.Module, temperature: float) -> nn.Module:
    """``model``, copied, at ``temperature``; one that cannot say how it is rebuilt makes one that cannot either."""
    wrapped = Calibrated(copy.deepcopy(model), temperature)
    wrapped.train(model.training)
    if spec_of(model) is None:
        del wrapped.spec
    return wrapped


def _slopes(z: Float[Tensor, "n c"], b: float) -> Float[Tensor, " n"]:
    """Per-sample derivative of the negative log-likelihood in b, for logits shifted to z_y = 0."""
    return ((b * z).softmax(1) * z).sum(1)


def _standard_error(z: Float[Tensor, "n c"], b: float) -> float | None:
    """Huber's sandwich for b, carried to T = 1 / b: sqrt(mean(slope^2) / n) / curvature / b^2."""
    g, p = _slopes(z, b), (b * z).softmax(1)
    curvature = float(((p * z.square()).sum(1) - g.square()).mean())
    return float(g.square().mean() / len(z)) ** 0.5 / curvature / b**2 if curvature > 0 else None
