"""How far confidences are from frequencies, on probabilities (n, c) and labels (n,). Computed in float64.

Each takes tensors or arrays, raises InputError where rows are no distributions (negative, or not summing to 1 within
1e-3), and returns a float >= 0, lower is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assay.runtime import statistics
from assay.runtime.errors import InputError

Array = Tensor | np.ndarray


def ece(probabilities: Array, y: Array, *, bins: int = 15) -> float:
    """Expected calibration error of the top class, equal-width bins (Naeini et al., 2015; Guo et al., 2017, eq. 3)."""
    values = top(*_checked("ece", probabilities, y, bins))
    return float(statistics.ece(values, np.ones((1, len(values))), bins)[0])


def adaptive_ece(probabilities: Array, y: Array, *, bins: int = 15) -> float:
    """Calibration error of the top class with bins of equal mass (Nguyen & O'Connor, 2015, arXiv:1508.05154)."""
    values = top(*_checked("adaptive_ece", probabilities, y, bins))
    return float(statistics.adaptive_ece(values, np.ones((1, len(values))), bins)[0])


def classwise_ece(probabilities: Array, y: Array, *, bins: int = 15) -> float:
    """Mean over classes of the calibration error of "is it class k" (Kull et al., 2019, arXiv:1910.12656, eq. 5)."""
    p, labels = _checked("classwise_ece", probabilities, y, bins)
    weights = np.ones((1, len(p)))
    per_class = [statistics.ece(np.stack([p[:, k], labels == k], 1), weights, bins)[0] for k in range(p.shape[1])]
    return float(np.mean(per_class))


def nll(probabilities: Array, y: Array) -> float:
    """Mean negative log-likelihood in nats; a probability of 0 counts as the smallest float64 (at most 709 nats)."""
    return float(sample_nll(*_checked("nll", probabilities, y)).mean())


def brier(probabilities: Array, y: Array) -> float:
    """Mean squared distance to the one-hot label, in [0, 2] (Brier, 1950)."""
    return float(sample_brier(*_checked("brier", probabilities, y)).mean())


def top_brier(probabilities: Array, y: Array) -> float:
    """Mean squared distance of the top confidence to 1 where the prediction is right, to 0 where it is wrong.

    In [0, 1]; what correctness-aware calibration minimises (Liu et al., 2024, arXiv:2404.13016).
    """
    confidence, correct = top(*_checked("top_brier", probabilities, y)).T
    return float(np.square(confidence - correct).mean())


def top(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Columns confidence and correct (n, 2): what the statistics "ece" and "adaptive_ece" take."""
    return np.stack([p.max(1), p.argmax(1) == y], 1).astype(float)


def sample_nll(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each sample (n,), in nats."""
    return -np.log(np.maximum(p[np.arange(len(p)), y], np.finfo(float).tiny))


def sample_brier(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distance of each row to its one-hot label (n,), in [0, 2]."""
    return np.square(p - np.eye(p.shape[1])[y]).sum(1)


@dataclass(frozen=True)
class Bins:
    """A reliability diagram: ``edges`` (b + 1,) and, for each bin, ``count``, mean ``confidence`` and ``accuracy``.

    Confidence and accuracy are NaN in an empty bin.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The count-weighted mean gap: equal to the function ``ece``."""
        full = self.count > 0
        gaps = np.abs(self.confidence[full] - self.accuracy[full])
        return float((self.count[full] * gaps).sum() / self.count.sum())

    @property
    def mce(self) -> float:
        """The largest gap of a bin: the maximum calibration error (Naeini et al., 2015). Small bins are noisy."""
        return float(np.nanmax(np.abs(self.confidence - self.accuracy)))


def reliability(probabilities: Array, y: Array, *, bins: int = 15) -> Bins:
    """Confidence against accuracy in equal-width bins (Niculescu-Mizil & Caruana, 2005)."""
    values = top(*_checked("reliability", probabilities, y, bins))
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.ceil(values[:, 0] * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as in statistics.ece
    count = np.bincount(which, minlength=bins)
    sums = [np.bincount(which, values[:, k], minlength=bins) for k in (0, 1)]
    means = [np.divide(s, count, out=np.full(bins, np.nan), where=count > 0) for s in sums]
    return Bins(edges, count, *means)


def _checked(where: str, probabilities: Array, y: Array, bins: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Float64 probabilities and integer labels."""
    given = probabilities.detach().cpu().double() if isinstance(probabilities, Tensor) else probabilities
    p = np.asarray(given, dtype=float)
    labels = torch.as_tensor(y).cpu().numpy()
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] < 2:
        raise InputError(f"{where}: probabilities have shape {p.shape}; expected (n, c) with n >= 1, c >= 2")
    if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise InputError(f"{where}: rows are no distributions; expected finite values >= 0 that sum to 1")
    if labels.shape != (len(p),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels are {labels.dtype} of shape {labels.shape}; expected integers ({len(p)},)")
    if labels.min() < 0 or labels.max() >= p.shape[1]:
        raise InputError(f"{where}: labels span [{labels.min()}, {labels.max()}]; expected 0 to {p.shape[1] - 1}")
    if bins < 1:
        raise InputError(f"{where}: bins is {bins}; expected at least 1")
    return p, labels
