"""The contract of inspectors: which training samples look as if they had been planted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float
from torch import nn

from assay.data import Data
from assay.detect.layers import chosen_layers, latents
from assay.detect.mahalanobis import PROBE
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH

LEAST = 4  # samples of a class that is examined


@dataclass(frozen=True)
class Inspection:
    """What an inspector found in a training set of n samples and c classes.

    ``score`` (n,): higher is more suspect among the samples of the same label; ``flagged`` (n,) what the method would
    take out; ``evidence`` (c,) the method's number for a whole class, NaN for classes of fewer than 4 samples, whose
    samples have score 0 and are not flagged.
    """

    score: Float[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]
    evidence: Float[np.ndarray, " c"]


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """``inspect(model, data, *, seed) -> Inspection`` of the set that ``model`` was trained on, class by class.

    A detector scores inputs of any origin without their labels; an inspector judges each labelled sample among all
    others of that label, so it is fitted and read off on the same data. ``layer``: "penultimate" (the last after a
    ReLU) or a dotted name; maps are averaged over space. A subclass states ``examine``. Raises InputError on unusable
    data.
    """

    kind: ClassVar[str] = "inspector"
    contract: ClassVar[bool] = True

    layer: str = "penultimate"
    batch_size: int = BATCH

    def examine(
        self, f: Float[np.ndarray, "m d"], *, seed: int
    ) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"], float]:
        """Score, verdict and evidence from the features of one class, m >= 4."""
        raise TypeError(f"{type(self).__name__} states no examine")

    def inspect(self, model: nn.Module, data: Data, *, seed: int) -> Inspection:
        """Examine every class; neither the model nor the data are changed."""
        where = type(self).__name__
        check_inputs(where, data.x, data.y, data.bounds)
        if self.batch_size < 1:
            raise InputError(f"{where}: batch_size is {self.batch_size}; expected at least 1")
        (layer,) = chosen_layers(model, self.layer, data.x[:PROBE])
        f, y = latents(model, data.x, layer, batch_size=self.batch_size)[0].numpy(), data.y.numpy()
        score, flagged = np.zeros(len(y)), np.zeros(len(y), bool)
        evidence = np.full(len(data.classes), np.nan)
        for c in range(len(evidence)):
            rows = np.flatnonzero(y == c)
            if len(rows) >= LEAST:
                score[rows], flagged[rows], evidence[c] = self.examine(f[rows], seed=seed)
        return Inspection(score, flagged, evidence)
