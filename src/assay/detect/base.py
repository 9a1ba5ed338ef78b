"""The contract of detectors, and the ones that read nothing but the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, ordinary, predict, traceable


@dataclass(kw_only=True)
class FittedDetector:
    """What ``Detector.fit`` returns.

    ``reference_`` (m,) are the scores that ``threshold`` is read from and ``threshold_from_`` names whose they are:
    "holdout" when one was given to ``fit``, else "fit data" (optimistic for detectors that learn from those).
    ``dtype_`` is the floating type of the fit data, in which inputs are read (None: their own).
    """

    model: nn.Module
    shape: tuple[int, ...]
    bounds: tuple[float, float]
    batch_size: int = BATCH
    reference_: np.ndarray = field(default_factory=lambda: np.empty(0))
    threshold_from_: str = ""
    dtype_: torch.dtype | None = None

    @property
    def networks(self) -> nn.ModuleList:
        """All networks that the score is made of."""
        return nn.ModuleList(v for v in vars(self).values() if isinstance(v, nn.Module))

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        """The scores of inputs that have been checked."""
        raise TypeError(f"{type(self).__name__} states no scores")

    def check(self, x: Tensor) -> Tensor:
        """``x`` (n, ...) in the floating type of the data that the detector was fitted on.

        InputError unless it has their shape and bounds.
        """
        where = type(self).__name__
        check_inputs(where, x, bounds=self.bounds)
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"{where}: x has samples of shape {tuple(x.shape[1:])}; expected {self.shape}")
        return x if self.dtype_ is None else x.to(self.dtype_)

    def score(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """How abnormal each input is: (n,) float64 on the CPU, higher is more abnormal. For errors see ``check``."""
        x = self.check(x)
        with traceable(type(self).__name__, self.model, x):
            return self.scores(ordinary(x))

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The scores with a graph back to ``x``: what an attack follows that knows of the detector.

        The inputs are taken as they are, and ``networks`` in the mode that they are in: an attack that leaves them as
        they were follows it inside ``evaluating(networks)``. InputError where the detector has no gradient.
        """
        raise InputError(f"{type(self).__name__}: its score has no gradient; expected a detector that states graph(x)")

    def threshold(self, fpr: float) -> float:
        """The score above which an input is called abnormal, so that at most ``fpr`` of ``reference_`` lies above it.

        ``fpr`` in (0, 1); where that is fewer than one reference sample the threshold is their largest score.
        """
        if not 0 < fpr < 1:
            raise InputError(f"{type(self).__name__}.threshold: fpr is {fpr}; expected 0 < fpr < 1")
        return float(np.quantile(self.reference_, 1 - fpr, method="higher"))


@dataclass(frozen=True, kw_only=True)
class Detector:
    """``fit(model, data) -> FittedDetector``. A subclass states in ``learn`` what it takes from the data."""

    kind: ClassVar[str] = "detector"

    batch_size: int = BATCH

    def learn(self, model: nn.Module, data: Data) -> FittedDetector:
        """The fitted detector, before its threshold is set."""
        raise TypeError(f"{type(self).__name__} states no learn")

    def fit(self, model: nn.Module, data: Data, holdout: Data | None = None) -> FittedDetector:
        """Fit to normal ``data``; thresholds come from ``holdout``'s scores where given, else from ``data``'s.

        The model is kept by reference and never changed. Raises InputError on unusable data, such as that of another
        floating type than the model's.
        """
        where = type(self).__name__
        check_inputs(where, data.x, data.y, data.bounds)
        if self.batch_size < 1:
            raise InputError(f"{where}: batch_size is {self.batch_size}; expected at least 1")
        with traceable(where, model, data.x), torch.enable_grad():
            fitted = self.learn(model, data)
        fitted.dtype_ = data.x.dtype
        fitted.reference_ = fitted.score((data if holdout is None else holdout).x).numpy()
        fitted.threshold_from_ = "fit data" if holdout is None else "holdout"
        return fitted


@dataclass(kw_only=True)
class FittedLogits(FittedDetector):
    """A detector whose score is a function of the logits alone."""

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The score of float64 logits."""
        raise TypeError(f"{type(self).__name__} states no of_logits")

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.of_logits(self.model(x).double())

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        return self.of_logits(predict(self.model, x, batch_size=self.batch_size).double())
