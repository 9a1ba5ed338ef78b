"""Spectral signatures of planted training samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from assay.detect.inspector import Inspector
from assay.runtime.errors import InputError

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Inspector):
    """Outlier scores along the first singular direction (Tran et al., 2018, arXiv:1811.00636, algorithm 1).

    For the features R of one label, centred: score ((R(x) - mean) . v)^2, v the top right singular vector. The
    1.5 ``eps`` m highest of m are flagged, ``eps`` in (0, 2/3] being the largest share that may be planted: so every
    class has its flagged samples, planted or not. Evidence: the part of the class's variance that lies along v.
    """

    eps: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 2 / 3:
            raise InputError(f"SpectralSignatures: eps={self.eps}; expected a share in (0, 2/3]")

    def examine(
        self, f: Float[np.ndarray, "m d"], *, seed: int
    ) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"], float]:
        _, strength, directions = np.linalg.svd(f - f.mean(0), full_matrices=False)
        score = ((f - f.mean(0)) @ directions[0]) ** 2
        flagged = np.zeros(len(f), bool)
        flagged[np.argsort(-score, kind="stable")[: math.ceil(1.5 * self.eps * len(f) - ROUNDING)]] = True
        return score, flagged, float(strength[0] ** 2 / max((strength**2).sum(), 1e-300))
