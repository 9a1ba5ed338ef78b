"""Data whose classes have a common and a rare feature, among patches of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

COMMON, RARE = slice(0, 2), slice(2, 4)  # rows of ``basis``, one a class


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNoiseModel:
    """Samples of ``patches`` vectors in R^``d``, one of which is a feature (Zou et al., 2023, arXiv:2303.08433).

    Both classes are equally likely. One patch, at random, is the rare feature of the class with probability ``rho`` and
    its common one otherwise. The other patches are noise N(0, ``sigma_p``^2 H), H projecting out all four features.
    With ``feature_noise`` (b, a), b of them, at random, carry a times the common feature of a random class besides.
    ``features`` (4, d) are the orthonormal rows v, u (common, of class 0 and 1) and v', u' (rare); absent, the first
    four axes, which loses nothing: the noise has no preferred direction.

    Raises InputError for d < 5, rho outside [0, 1], sigma_p < 0, fewer than 2 patches, more noisy patches than there
    are, and features that are not orthonormal to 1e-5.
    """

    d: int
    rho: float
    sigma_p: float
    patches: int = 2
    feature_noise: tuple[int, float] | None = None
    features: Float[Tensor, "4 d"] | None = None

    def __post_init__(self) -> None:
        given = f"d={self.d}, patches={self.patches}, sigma_p={self.sigma_p}"
        if self.d < 5 or self.patches < 2 or not 0 <= self.sigma_p < float("inf"):
            raise InputError(f"FeatureNoiseModel: {given}; expected d >= 5, patches >= 2, a finite sigma_p >= 0")
        _check_share("rho", self.rho)
        if self.feature_noise is not None:
            b, strength = self.feature_noise
            if not isinstance(b, Integral) or not 0 <= b < self.patches or not math.isfinite(strength):
                raise InputError(
                    f"FeatureNoiseModel: feature_noise={self.feature_noise}; expected 0 to {self.patches - 1} patches "
                    "and a finite number"
                )
        if self.features is not None:
            if self.features.shape != (4, self.d):
                raise InputError(f"FeatureNoiseModel: features {tuple(self.features.shape)}; expected (4, {self.d})")
            off = float((self.features @ self.features.T - torch.eye(4).to(self.features)).abs().max())
            if not off <= 1e-5:
                raise InputError(f"FeatureNoiseModel: features are {off:.3g} from orthonormal; expected at most 1e-5")

    @property
    def basis(self) -> Float[Tensor, "4 d"]:
        """v, u, v', u'."""
        return torch.eye(4, self.d) if self.features is None else self.features.float()

    def noise(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        """``x`` without what lies along the features."""
        return x - (x @ self.basis.T) @ self.basis

    def sample(self, n: int, *, rho: float | None = None, seed: int) -> Data:
        """``n`` samples x (n, p, d) with labels 0 and 1 and the field ``is_rare`` (n,), bool; ``rho`` in place of the
        model's own where it is given."""
        if n < 1:
            raise InputError(f"FeatureNoiseModel: n={n}; expected at least 1")
        share = self.rho if rho is None else _check_share("rho", rho)
        g = torch_rng(seed, "feature-noise")
        y = torch.randint(2, (n,), generator=g)
        is_rare = torch.rand(n, generator=g) < share
        x = self.sigma_p * self.noise(torch.randn(n, self.patches, self.d, generator=g))
        # Patches in a random order: the first holds the feature, the next b the feature noise.
        order, rows = torch.rand(n, self.patches, generator=g).argsort(1), torch.arange(n)
        x[rows, order[:, 0]] = self.basis[y + 2 * is_rare]
        if self.feature_noise is not None:
            b, strength = self.feature_noise
            x[rows[:, None], order[:, 1 : b + 1]] += strength * self.basis[torch.randint(2, (n, b), generator=g)]
        bounds = (float(x.min()), float(x.max()))
        return Data(x, y, ("0", "1"), bounds, "feature noise", fields={"is_rare": is_rare})


def _check_share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"FeatureNoiseModel: {name}={value}; expected a number in [0, 1]")
    return value
