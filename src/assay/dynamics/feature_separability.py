"""How far apart the features of classes lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class FeatureSeparability:
    """``ratio``: trace(S_B) / trace(S_W). ``cosine_margin``: the mean over samples of the cosine to the own class's
    mean direction less the largest to another class's."""

    ratio: float
    cosine_margin: float


def feature_separability(feat: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> FeatureSeparability:
    """The scatter of class means over that within classes, and cosine margins (Wang et al., 2021, arXiv:2107.13639,
    section 3, argue from the separability of features; the measure is Fisher's), in float64.

    S_B is the covariance of the class means, S_W the mean over classes of their covariances, so that the sizes of
    classes do not count. ``feat`` (n, d), ``y`` (n,) int64. The ratio is infinite where no class has any spread.
    InputError for fewer than two classes, values that are not finite and features that are all the same.
    """
    check_inputs("feature_separability", feat)
    check_labels("feature_separability", y, len(feat))
    classes, rows, counts = torch.unique(y, return_inverse=True, return_counts=True)
    if feat.dim() != 2 or len(classes) < 2:
        found = f"features {tuple(feat.shape)}, {len(classes)} class"
        raise InputError(f"feature_separability: {found}; expected (n, d) of two classes or more")
    if (feat == feat[:1]).all():
        raise InputError("feature_separability: all features are the same; expected samples that differ")
    h = feat.detach().cpu().double()
    means = torch.zeros(len(classes), h.shape[1], dtype=h.dtype).index_add_(0, rows, h) / counts[:, None]
    between = (means - means.mean(0)).square().sum(1).mean()
    spread = torch.zeros(len(classes), dtype=h.dtype).index_add_(0, rows, (h - means[rows]).square().sum(1))
    cosine = F.normalize(h, dim=1) @ F.normalize(means, dim=1).T
    own = cosine.gather(1, rows[:, None])[:, 0]
    other = cosine.scatter(1, rows[:, None], -torch.inf).amax(1)
    return FeatureSeparability(float(between / (spread / counts).mean()), float((own - other).mean()))
