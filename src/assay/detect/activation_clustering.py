"""Two clusters in the activations of a label: what belongs there, and what was planted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

from assay.detect.inspector import Inspector
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive

ANALYSES = ("smaller", "relative-size", "silhouette")
REDUCTIONS = ("ica", "pca")


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(Inspector):
    """2-means on reduced activations (Chen et al., 2018, arXiv:1811.03728, algorithm 2 and section 4).

    The activations of one label are reduced to ``dimensions`` by independent (or principal) components and split in
    two. ``analysis`` says when the smaller cluster is flagged: "smaller" always; "relative-size" where it holds less
    than ``size`` of the samples; "silhouette" where, besides, the silhouette of the split exceeds ``separation`` (the
    paper looks for 0.10 to 0.15). Score: how much farther the larger cluster's centre is than the smaller's (above 0
    in the smaller cluster). Evidence: the silhouette. Exclusionary reclassification (section 4.1) is
    ``exclusionary_reclassification``.
    """

    dimensions: int = 10
    reduction: Literal["ica", "pca"] = "ica"
    analysis: Literal["smaller", "relative-size", "silhouette"] = "silhouette"
    size: float = 0.35
    separation: float = 0.1

    def __post_init__(self) -> None:
        if self.analysis not in ANALYSES:
            raise unknown("analysis", self.analysis, ANALYSES)
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction", self.reduction, REDUCTIONS)
        if self.dimensions < 1 or not 0 < self.size <= 1:
            raise InputError(
                f"ActivationClustering: dimensions={self.dimensions}, size={self.size}; expected dimensions >= 1 and "
                "a share in (0, 1]"
            )

    def _reduced(self, f: Float[np.ndarray, "m d"], seed: int) -> Float[np.ndarray, "m k"]:
        k = min(self.dimensions, int(np.linalg.matrix_rank(f - f.mean(0))))
        if k < 1:
            return np.zeros((len(f), 1))
        z = PCA(k, whiten=self.reduction == "ica", svd_solver="full").fit_transform(f)
        if self.reduction == "pca":
            return np.asarray(z)
        # Whitened above, since FastICA's own whitening gives NaN where the first feature never changes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the directions found last serve as well
            return np.asarray(FastICA(whiten=False, random_state=seed, max_iter=500).fit_transform(z))

    def examine(
        self, f: Float[np.ndarray, "m d"], *, seed: int
    ) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"], float]:
        short = derive(seed, "activation-clustering") % 2**32
        z = self._reduced(f, short)
        if len(np.unique(z, axis=0)) < 3:
            return np.zeros(len(f)), np.zeros(len(f), bool), 0.0
        fitted = KMeans(2, n_init=10, random_state=short).fit(z)
        smaller = int(np.bincount(fitted.labels_, minlength=2).argmin())
        distance = fitted.transform(z)
        inside = fitted.labels_ == smaller
        silhouette = float(silhouette_score(z, fitted.labels_))
        suspect = self.analysis == "smaller" or inside.mean() < self.size
        suspect &= self.analysis != "silhouette" or silhouette > self.separation
        return distance[:, 1 - smaller] - distance[:, smaller], inside & suspect, silhouette
