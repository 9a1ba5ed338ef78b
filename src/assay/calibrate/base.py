"""The contract of calibrators: ``fit(outputs, y) -> fitted``, ``fitted.transform(outputs) -> (n, c)`` logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError


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
        if self.features is not None and len(self.features) != n:
            raise InputError(f"outputs: features have {len(self.features)} rows; expected {n}, one a sample")
        if self.views is not None and (self.views.dim() != 3 or self.views.shape[1:] != self.logits.shape):
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

    @property
    def probabilities(self) -> Float[Tensor, "n c"]:
        """Softmax of the logits in float64."""
        return self.logits.double().softmax(1)


class FittedCalibrator(ABC):
    """What a calibrator's ``fit`` returns; learned values are attributes that end in ``_``."""

    @abstractmethod
    def transform(self, outputs: Outputs) -> Float[Tensor, "n c"]:
        """Calibrated *logits* (n, c), float64: their softmax is the calibrated probability."""


@dataclass(frozen=True, kw_only=True)
class Calibrator(ABC):
    """A map from outputs to better calibrated logits, fitted on held-out samples.

    ``objective`` names the measure that fitting never worsens on the samples it was fitted on.
    """

    kind: ClassVar[str] = "calibrator"
    objective: ClassVar[str] = "nll"

    def fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedCalibrator:
        """Fit on logits (n, c) and labels (n,) int64 in [0, c). Raises InputError on bad labels."""
        check_labels(type(self).__name__, y, len(outputs.logits), outputs.classes)
        return self._fit(outputs, y)

    @abstractmethod
    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedCalibrator:
        """The method itself, on checked inputs."""
