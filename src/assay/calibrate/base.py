"""The contract of calibrators: ``fit(outputs, y) -> fitted``, ``fitted.transform(outputs) -> (n, c)`` logits."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import check_logits, device_of, predict
from assay.runtime.spec import rebuildable
from assay.subject import Subject


@dataclass(frozen=True)
class Outputs:
    """What a model said about n samples.

    logits (n, c), finite, c >= 2; features (n, d) of a hidden layer; views (v, n, c) logits under augmentations or
    from ensemble members; index (n,) int64 names the samples for methods that draw at random (default: 0 to n - 1).
    Raises InputError on other shapes or non-finite values.
    """

    logits: Float[Tensor, "n c"]
    features: Float[Tensor, "n d"] | None = None
    views: Float[Tensor, "v n c"] | None = None
    index: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        check_inputs("outputs: logits", self.logits)
        n = len(self.logits)
        if self.logits.dim() != 2 or self.logits.shape[1] < 2:
            raise InputError(f"outputs: logits have shape {tuple(self.logits.shape)}; expected (n, c) with c >= 2")
        if self.features is not None:
            check_inputs("outputs: features", self.features)
            if self.features.dim() != 2 or len(self.features) != n:
                raise InputError(f"outputs: features have shape {tuple(self.features.shape)}; expected ({n}, d)")
        if self.views is not None:
            check_inputs("outputs: views", self.views)
            if self.views.dim() != 3 or self.views.shape[1:] != self.logits.shape:
                raise InputError(
                    f"outputs: views have shape {tuple(self.views.shape)}; expected (v, {n}, {self.logits.shape[1]})"
                )
        if self.index is not None and self.index.shape != (n,):
            raise InputError(f"outputs: index has shape {tuple(self.index.shape)}; expected ({n},)")

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return self.logits.shape[1]

    @property
    def names(self) -> Int[Tensor, " n"]:
        """``index``, or 0 to n - 1."""
        return torch.arange(len(self.logits)) if self.index is None else self.index

    def detached(self) -> Outputs:
        """The same values without their graphs."""
        features, views = (None if t is None else t.detach() for t in (self.features, self.views))
        return replace(self, logits=self.logits.detach(), features=features, views=views)

    @property
    def probabilities(self) -> Float[Tensor, "n c"]:
        """Softmax of the logits in float64."""
        return self.logits.double().softmax(1)


class FittedCalibrator(ABC):
    """What a calibrator's ``fit`` returns; learned values are attributes that end in ``_``."""

    @abstractmethod
    def transform(self, outputs: Outputs) -> Float[Tensor, "n c"]:
        """Calibrated *logits* (n, c), float64: their softmax is the calibrated probability."""


class CalibrationMap(FittedCalibrator, nn.Module):
    """A fitted calibrator that is a module of logits. What is learned are float64 buffers, saved with a model."""

    @abstractmethod
    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits, in float64."""

    def transform(self, outputs: Outputs) -> Float[Tensor, "n c"]:
        """Calibrated logits (n, c), float64. Raises InputError for another number of classes than was fitted."""
        if outputs.classes != self.classes:
            raise InputError(f"{type(self).__name__}: {outputs.classes} logits; expected {self.classes}, as fitted")
        with torch.no_grad():
            return self(outputs.logits.double())

    @property
    @abstractmethod
    def classes(self) -> int:
        """The number of classes c that were fitted."""


@rebuildable
class Recalibrated(nn.Module):
    """``model`` followed by a fitted map of its logits; training leaves the map as it is."""

    def __init__(self, model: nn.Module, calibration: CalibrationMap) -> None:
        super().__init__()
        self.model, self.calibration = model, calibration

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        logits = self.model(x)
        return self.calibration(logits.double()).to(logits.dtype)


@dataclass(frozen=True, kw_only=True)
class Calibrator(ABC):
    """A map from outputs to better calibrated logits, fitted on held-out samples.

    ``objective`` names the measure that fitting lowers on the samples it was fitted on. Where ``guaranteed``, it never
    rises there: the identity is one of the maps fitted, and the fit minimises the measure itself.
    """

    kind: ClassVar[str] = "calibrator"
    objective: ClassVar[str] = "nll"
    guaranteed: ClassVar[bool] = True

    def fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedCalibrator:
        """Fit on logits (n, c) and labels (n,) int64 in [0, c). Raises InputError on bad labels."""
        check_labels(type(self).__name__, y, len(outputs.logits), outputs.classes)
        return self._fit(outputs.detached(), y)

    @abstractmethod
    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedCalibrator:
        """The method itself, on checked inputs."""

    def apply(self, model: nn.Module, data: Data) -> nn.Module:
        """A copy of ``model`` whose logits go through the map fitted on ``data``. InputError where it is no module."""
        check_logits(type(self).__name__, model, data.x[:1])
        fitted = self.fit(Outputs(predict(model, data.x)), data.y)
        if not isinstance(fitted, CalibrationMap):
            raise InputError(
                f"{type(self).__name__}: no module of logits alone; expected one that gives a CalibrationMap"
            )
        return Recalibrated(copy.deepcopy(model), fitted.to(device_of(model))).train(model.training)

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's model calibrated on its holdout; nothing is random."""
        assert subject.holdout is not None
        return self.apply(subject.model, subject.holdout)

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """None: without its map the model is what it was."""
        return None
