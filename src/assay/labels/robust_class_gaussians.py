"""One Gaussian a class from representations whose labels are partly wrong and whose classes are of unequal size."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng


@dataclass(frozen=True)
class FittedClassGaussians:
    """means_ (k, m) and covs_ (k, m, m), float64; inlier_mask_ (n,) of the samples that they were taken from;
    neighbors_ (k, q), the head classes that each tail class drew on, and their weights_ (-1 and 0 for head classes).
    """

    means_: Float[Tensor, "k m"]
    covs_: Float[Tensor, "k m m"]
    inlier_mask_: Bool[Tensor, " n"]
    neighbors_: Int[Tensor, "k q"]
    weights_: Float[Tensor, "k q"]

    def sample(
        self, n_per_class: int | Int[Tensor, " k"], *, seed: int
    ) -> tuple[Float[Tensor, "n m"], Int[Tensor, " n"]]:
        """Points and their classes, class by class: as many of each, or as many as a tensor (k,) says."""
        k, m = self.means_.shape
        counts = torch.full((k,), n_per_class) if isinstance(n_per_class, int) else n_per_class
        if counts.shape != (k,) or counts.dtype != torch.int64 or int(counts.min()) < 0:
            raise InputError(f"sample: {counts.dtype} counts {tuple(counts.shape)}; expected {k} integers >= 0")
        values, vectors = torch.linalg.eigh(self.covs_)
        roots = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT  # free of the vectors' signs
        noise = torch.randn(k, int(counts.max()), m, generator=torch_rng(seed, "class-gaussians"), dtype=torch.float64)
        points = self.means_[:, None] + noise @ roots
        return points[torch.arange(noise.shape[1]) < counts[:, None]], torch.arange(k).repeat_interleave(counts)

    def score_samples(self, z: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """Log density of each point under each class, its eigenvalues raised to 1e-9 of the class's largest.

        InputError unless z is finite and as wide as the means.
        """
        if z.dim() != 2 or z.shape[1] != self.means_.shape[1] or not torch.isfinite(z).all():
            raise InputError(f"score_samples: z {tuple(z.shape)}; expected finite (n, {self.means_.shape[1]})")
        values, vectors = torch.linalg.eigh(self.covs_)
        values = values.clamp_min(1e-9 * values.amax(1, keepdim=True)).clamp_min(torch.finfo(torch.float64).tiny)
        along = torch.einsum("nkm,kmj->nkj", z.double()[:, None] - self.means_, vectors)
        return -0.5 * (along.square() / values + values.log() + math.log(2 * math.pi)).sum(2)


@dataclass(frozen=True, kw_only=True)
class RobustClassGaussians:
    """Outliers out, then statistics of the large classes for the small ones (Zhang et al., 2023, arXiv:2211.10955).

    Each class, by its given labels, loses the outliers that the Local Outlier Factor finds with ``lof_neighbors``
    neighbours (None keeps all) and ``contamination`` ("auto" or a share in (0, 1/2]). Mean mu and covariance S (divisor
    n - 1) are those of the rest. Classes with fewer samples than the quantile ``tail_quantile`` of the class sizes are
    tail classes. A tail class k takes from the ``q`` head classes g with the nearest means, at weights w_g proportional
    to n_g / |mu_g - mu_k|^2 that sum to 1:

        mu' = gamma sum w_g mu_g + (1 - gamma) mu_k
        S' = gamma^2 sum w_g^2 S_g + (1 - gamma)^2 S_k + alpha D,

    D the identity, or all ones with ``dispersion`` "ones" as in the method this grew from (Yang et al., 2021,
    arXiv:2101.06395). The weights, this form and the defaults of q, gamma and alpha are not confirmed against the
    paper's equations. ``shrinkage`` "ledoit-wolf" replaces the sample covariance (tail classes have fewer samples than
    dimensions). A class with fewer than two samples left has the covariance that the others pool, which a
    RuntimeWarning says; one class at least must have two.

    ``fit(z (n, m), y (n,) int64)``; wrong labels are expected in y, and head and tail follow from it. InputError for a
    class without samples, z that is not finite, q above the number of head classes and options out of range.
    """

    kind: ClassVar[str] = "function"

    q: int = 3
    gamma: float = 0.3
    alpha: float = 1e-3
    dispersion: Literal["identity", "ones"] = "identity"
    lof_neighbors: int | None = 20
    contamination: float | Literal["auto"] = "auto"
    tail_quantile: float = 0.5
    shrinkage: Literal["ledoit-wolf"] | None = "ledoit-wolf"

    def __post_init__(self) -> None:
        where = "RobustClassGaussians"
        if not 0 <= self.gamma <= 1 or self.q < 1 or not 0 <= self.alpha < math.inf or not 0 <= self.tail_quantile <= 1:
            given = f"q={self.q}, gamma={self.gamma}, alpha={self.alpha}, tail_quantile={self.tail_quantile}"
            raise InputError(f"{where}: {given}; expected q >= 1, gamma and quantile in [0, 1], alpha >= 0")
        if self.lof_neighbors is not None and self.lof_neighbors < 1:
            raise InputError(f"{where}: lof_neighbors={self.lof_neighbors}; expected at least 1, or None")
        share = self.contamination
        if share != "auto" and (isinstance(share, str) or not 0 < share <= 0.5):
            given = f"contamination={self.contamination!r}"
            raise InputError(f"{where}: {given}; expected 'auto' or a share in (0, 0.5]")
        if self.dispersion not in ("identity", "ones"):
            raise unknown(f"dispersion of {where}", str(self.dispersion), ("identity", "ones"))
        if self.shrinkage not in ("ledoit-wolf", None):
            raise InputError(f"{where}: shrinkage={self.shrinkage!r}; expected 'ledoit-wolf' or None")

    def fit(self, z: Float[Tensor, "n m"], y: Int[Tensor, " n"]) -> FittedClassGaussians:
        """The calibrated means and covariances of the classes 0 to max(y)."""
        counts = self._counts(z, y)
        z = z.double()
        kept = torch.ones(len(z), dtype=torch.bool)
        for k in range(len(counts)):
            kept[y == k] = self._inliers(z[y == k])
        means, covs = self._moments(z[kept], y[kept], len(counts))
        tail = counts < torch.quantile(counts.double(), self.tail_quantile)
        neighbors, weights = self._donors(means, counts, tail)
        if not tail.any():
            return FittedClassGaussians(means, covs, kept, neighbors, weights)
        g, w = neighbors[tail], weights[tail]
        near = torch.einsum("tq,tqm->tm", w, means[g])
        spread = torch.einsum("tq,tqij->tij", w.square(), covs[g])
        m = z.shape[1]
        extra = torch.eye(m).double() if self.dispersion == "identity" else torch.ones(m, m).double()
        rest, moved, wide = 1 - self.gamma, means.clone(), covs.clone()
        moved[tail] = self.gamma * near + rest * means[tail]
        wide[tail] = self.gamma**2 * spread + rest**2 * covs[tail] + self.alpha * extra
        return FittedClassGaussians(moved, wide, kept, neighbors, weights)

    def nearest(self, distance: Float[Tensor, "t h"]) -> Int[Tensor, "t q"]:
        """Which of the head classes, by their distances from each tail class, it draws on."""
        return distance.topk(self.q, 1, largest=False).indices

    def _donors(self, means: Tensor, counts: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """For each tail class its q head classes and their weights."""
        neighbors = torch.full((len(means), self.q), -1)
        weights = torch.zeros(len(means), self.q, dtype=torch.float64)
        heads = (~tail).nonzero()[:, 0]
        if not tail.any():
            return neighbors, weights
        if self.q > len(heads):
            raise InputError(
                f"RobustClassGaussians: q={self.q} with {len(heads)} head classes; expected q at most that"
            )
        distance = torch.cdist(means[tail], means[heads], compute_mode="donot_use_mm_for_euclid_dist")
        chosen = self.nearest(distance)
        closeness = distance.gather(1, chosen).square().clamp_min(1e-12)
        w = counts[heads][chosen] / closeness
        neighbors[tail], weights[tail] = heads[chosen], w / w.sum(1, keepdim=True)
        return neighbors, weights

    def _inliers(self, z: Float[Tensor, "n m"]) -> Bool[Tensor, " n"]:
        if self.lof_neighbors is None or len(z) < 3:
            return torch.ones(len(z), dtype=torch.bool)
        factor = LocalOutlierFactor(min(self.lof_neighbors, len(z) - 1), contamination=self.contamination)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # many equal points: their factor is 1, they stay
            return torch.from_numpy(factor.fit_predict(z.numpy()) == 1)

    def _moments(self, z: Tensor, y: Tensor, classes: int) -> tuple[Float[Tensor, "k m"], Float[Tensor, "k m m"]]:
        groups = [z[y == k] for k in range(classes)]
        means = torch.stack([g.mean(0) for g in groups])
        sizes = torch.tensor([len(g) for g in groups])
        few = sizes < 2
        if few.all():
            raise InputError("RobustClassGaussians: no class has two samples left; expected one that has a covariance")
        stacked = torch.stack([self._covariance(g) if len(g) > 1 else g.new_zeros(2 * g.shape[1:]) for g in groups])
        if few.any():
            warnings.warn(
                f"RobustClassGaussians: {int(few.sum())} classes have fewer than two samples: pooled covariance",
                RuntimeWarning,
                stacklevel=3,
            )
            share = (sizes - 1).clamp_min(0).double()
            stacked[few] = torch.einsum("k,kij->ij", share / share.sum().clamp_min(1), stacked)
        return means, stacked

    def _covariance(self, z: Float[Tensor, "n m"]) -> Float[Tensor, "m m"]:
        if self.shrinkage is None:
            return torch.atleast_2d(z.T.cov())
        return torch.as_tensor(ledoit_wolf(z.numpy())[0])

    def _counts(self, z: Tensor, y: Tensor) -> Int[Tensor, " k"]:
        where = "RobustClassGaussians"
        if z.dim() != 2 or len(z) == 0 or not z.is_floating_point() or not torch.isfinite(z).all():
            raise InputError(
                f"{where}: z is {z.dtype} of shape {tuple(z.shape)}; expected finite floats (n, m), n >= 1"
            )
        check_labels(where, y, len(z))
        counts = torch.bincount(y)
        if len(counts) < 2 or int(counts.min()) == 0:
            raise InputError(
                f"{where}: class sizes {counts.tolist()}; expected two classes or more, none of them empty"
            )
        return counts


def mean_error_bound(gamma: float, distance: float, head_error: float, tail_error: float) -> float:
    """The most that |mu' - mu_k| can be: gamma (distance + head_error) + (1 - gamma) tail_error.

    ``distance`` is the largest |mu_g - mu_k| between true means, ``head_error`` the largest error of a head class's
    estimated mean, ``tail_error`` that of the tail class's own. By the triangle inequality, for any weights that sum
    to 1; it shows what Assumption 3.1 of Zhang et al. (2023) asks for, heads near the tail class, and is not the
    paper's own bound. InputError for gamma outside [0, 1] and negative lengths.
    """
    if not (0 <= gamma <= 1 and all(length >= 0 for length in (distance, head_error, tail_error))):
        given = f"gamma={gamma}, lengths {distance}, {head_error}, {tail_error}"
        raise InputError(f"mean_error_bound: {given}; expected gamma in [0, 1] and lengths >= 0")
    return gamma * (distance + head_error) + (1 - gamma) * tail_error
