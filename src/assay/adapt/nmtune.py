"""NMTune: a head that reshapes the spectrum of features which were learned from noisy labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.adapt.mlp_tuning import MLPTuning
from assay.runtime.errors import InputError, unknown

Form = Literal["code", "paper"]
PRESETS: Mapping[str, Mapping[str, float]] = {
    "code": {"mse": 1.0, "cov": 0.04, "svd": 0.001},
    "paper": {"mse": 0.01, "cov": 0.01, "svd": 0.01},
}
TOP = {"code": 5, "paper": 1}  # how many singular values the dominant part has


def nmtune_losses(
    z: Float[Tensor, "v d"], features: Float[Tensor, "b d"], form: Form = "code"
) -> dict[str, Float[Tensor, ""]]:
    """The three terms (Chen et al., 2024, arXiv:2309.17002, section 4; "code" as the official code computes them).

    ``mse``, >= 0: squared distance of z / |z| from features / |features|, its mean over entries in "code", summed over
    dimensions in "paper"; features carry no gradient. ``cov``, >= 0: (1/d) sum over i != j of C_ij^2, C the covariance
    of z with divisor v - 1. ``svd``, in [-1, 0): minus the mean of the five largest singular values of z ("paper":
    minus the largest), all divided by their sum. z holds Z of one view or of several, v = k b, the last b rows those
    that are compared with the features. Half precision is computed in float32. InputError for other shapes, fewer than
    two rows, values that are not finite floats, and z of zeros. A row of zeros has no direction, its unit row is zero.
    """
    if z.dim() != 2 or features.dim() != 2 or z.shape[1] != features.shape[1] or len(z) < 2 or len(features) == 0:
        raise InputError(f"nmtune_losses: {tuple(z.shape)}, {tuple(features.shape)}; expected (v, d), (b, d), v >= 2")
    if len(z) % len(features):
        raise InputError(f"nmtune_losses: {len(z)} rows for {len(features)} samples; expected a multiple")
    if form not in TOP:
        raise unknown("form of nmtune_losses", form, TOP)
    _check_values(z, features)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    last = z[-len(features) :]
    gaps = (F.normalize(last, dim=1) - F.normalize(features.detach().to(z), dim=1)).square()
    s = torch.linalg.svdvals(z)
    return {
        "mse": gaps.mean() if form == "code" else gaps.sum(1).mean(),
        "cov": covariance_term(z),
        "svd": -(s / s.sum())[: TOP[form]].mean(),
    }


def _check_values(z: Tensor, features: Tensor) -> None:
    for name, values in (("z", z), ("features", features.detach())):
        if not values.is_floating_point() or not torch.isfinite(values).all():
            raise InputError(f"nmtune_losses: {name} is {values.dtype} or not finite; expected finite floats")
    if not z.any():
        raise InputError("nmtune_losses: z is zero throughout; expected singular values above 0")


def covariance_term(z: Float[Tensor, "v d"]) -> Float[Tensor, ""]:
    """(1/d) sum over i != j of C_ij^2, C the covariance of the columns (the term of VICReg, Bardes et al., 2022,
    arXiv:2105.04906, eq. 4)."""
    centred = z - z.mean(0)
    c = centred.T @ centred / (len(z) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]


@dataclass(frozen=True, kw_only=True)
class NMTune(MLPTuning):
    """MLPTuning with three terms on Z: near the frozen features, decorrelated, its dominant part enlarged (Chen et al.,
    2024, arXiv:2309.17002).

    ``weights`` are "code" (mse 1, cov 0.04, svd 0.001, the official commands, on its forms of the terms), "paper" (0.01
    each, the paper's) or a mapping with those three names, on the code's forms. They suit features of the scale of
    a ResNet's; cov grows with the fourth power of the scale, see ``normalize``. With features of one view, the mse
    compares a view with itself. For shapes and errors see FeatureTuner, NMTuneHead and nmtune_losses.
    """

    weights: Literal["code", "paper"] | Mapping[str, float] = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weights, str):
            if self.weights not in PRESETS:
                raise unknown("weights of NMTune", self.weights, PRESETS)
        elif (
            not isinstance(self.weights, Mapping)
            or set(self.weights) != set(PRESETS["code"])
            or not all(0 <= w < math.inf for w in self.weights.values())
        ):
            raise InputError(f"NMTune: weights {self.weights}; expected finite mse, cov, svd >= 0")

    def losses(self, z: Float[Tensor, "v d"], features: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """The three terms, unweighted."""
        return nmtune_losses(z, features, "paper" if self.weights == "paper" else "code")

    def terms(self, z: Float[Tensor, "v d"], features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        weights = PRESETS[self.weights] if isinstance(self.weights, str) else self.weights
        found = self.losses(z, features)
        return torch.stack([weights[name] * found[name] for name in found]).sum()
