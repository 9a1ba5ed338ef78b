"""Adding classes to a Gaussian classifier of a network's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.detect.mahalanobis import TiedGaussian
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class ClassIncrementalGDA:
    """Nearest class mean in Mahalanobis distance, one class at a time (Lee et al., 2018, arXiv:1807.03888, alg. 2).

    mean_ (c, d) and covariance_ (d, d), float64. A new class takes its samples' mean, and the covariance becomes
    (c Sigma + Sigma_new) / (c + 1): the mean of the classes' own covariances, whatever their sizes.
    """

    kind: ClassVar[str] = "function"

    mean_: Float[Tensor, "c d"]
    covariance_: Float[Tensor, "d d"]

    @classmethod
    def fit(cls, f: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> ClassIncrementalGDA:
        """From features of the base classes 0 to c - 1, each class's covariance with the same weight."""
        if f.ndim != 2 or y.shape != (len(f),) or len(f) == 0 or int(y.min()) < 0:
            raise InputError(f"GDA: features {tuple(f.shape)}, labels {tuple(y.shape)}; expected (n, d) and (n,) >= 0")
        parts = [f[y == c] for c in range(int(y.max()) + 1)]
        fitted = cls(f.new_zeros(0, f.shape[1]).double(), f.new_zeros(f.shape[1], f.shape[1]).double())
        for part in parts:
            fitted = fitted.with_class(part)
        return fitted

    def with_class(self, f: Float[Tensor, "n d"]) -> ClassIncrementalGDA:
        """The classifier with one more class, of samples ``f``; raises InputError below two or for other widths."""
        c, d = self.mean_.shape
        if f.ndim != 2 or f.shape[1] != d or len(f) < 2 or not torch.isfinite(f).all():
            raise InputError(
                f"GDA: class {c} has features of shape {tuple(f.shape)}; expected (n, {d}), n >= 2, finite numbers"
            )
        f = f.double()
        mean = f.mean(0)
        own = (f - mean).T @ (f - mean) / len(f)
        return ClassIncrementalGDA(torch.cat((self.mean_, mean[None])), (c * self.covariance_ + own) / (c + 1))

    def distances(self, f: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Squared distances to the class means; directions without variance are left out."""
        return TiedGaussian.of(self.mean_, self.covariance_).distances(f)

    def predict(self, f: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The nearest class of each sample."""
        return self.distances(f).argmin(1)
