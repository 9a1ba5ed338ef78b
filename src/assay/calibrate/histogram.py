"""Histogram binning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.calibrate.base import Calibrator, Outputs
from assay.calibrate.one_vs_rest import OneVsRestMap
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable


@rebuildable
class HistogramMap(OneVsRestMap):
    """A step function of each class's probability: bins (low, high] between ``edges_`` (c, b - 1), ``values_`` (c,
    b)."""

    edges_: Tensor
    values_: Tensor

    def __init__(self, classes: int, bins: int) -> None:
        super().__init__()
        self.register_buffer("edges_", torch.zeros(classes, bins - 1, dtype=torch.float64))
        self.register_buffer("values_", torch.zeros(classes, bins, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return len(self.values_)

    def scores(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The share of the class in the bin of its probability."""
        p = logits.softmax(1)
        which = torch.searchsorted(self.edges_, p.T.contiguous())
        return self.values_.gather(1, which).T + 0 * p  # a gradient of 0, not none


@dataclass(frozen=True, kw_only=True)
class HistogramBinning(Calibrator):
    """The share of a class among the samples in the bin of its probability, for each class against the rest, normalised
    (Zadrozny & Elkan, 2001, "Obtaining calibrated probability estimates from decision trees and naive Bayesian
    classifiers").

    ``bins`` >= 2 hold equally many samples ("mass", as there) or are equally wide ("width", as in Guo et al., 2017,
    arXiv:1706.04599, section 4.1); an empty bin gives its centre. Predictions can change, and gradients are 0 almost
    everywhere. Raises InputError for other options.
    """

    objective: ClassVar[str] = "classwise_ece"
    guaranteed: ClassVar[bool] = False

    bins: int = 15
    spacing: Literal["mass", "width"] = "mass"

    def __post_init__(self) -> None:
        if self.bins < 2 or self.spacing not in ("mass", "width"):
            given = f"bins={self.bins}, spacing={self.spacing!r}"
            raise InputError(f"HistogramBinning: {given}; expected bins >= 2, spacing mass or width")

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> HistogramMap:
        p, labels, c = outputs.probabilities.numpy(), y.numpy(), outputs.classes
        even = np.arange(1, self.bins) / self.bins
        edges = np.tile(even, (c, 1))
        if self.spacing == "mass":
            ordered, cut = np.sort(p, 0), np.clip(np.round(even * len(p)).astype(int), 1, None)
            edges = (ordered.take(cut - 1, 0, mode="clip") + ordered.take(cut, 0, mode="clip")).T / 2
        fitted = HistogramMap(c, self.bins)
        for k in range(c):
            which = np.searchsorted(edges[k], p[:, k])
            count = np.bincount(which, minlength=self.bins)
            hits = np.bincount(which, labels == k, minlength=self.bins)
            centres = np.convolve(np.r_[0, edges[k], 1], [0.5, 0.5], "valid")
            fitted.values_[k] = torch.from_numpy(np.where(count > 0, hits / np.maximum(count, 1), centres))
        fitted.edges_.copy_(torch.from_numpy(edges))
        return fitted
