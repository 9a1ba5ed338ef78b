"""Linear probing by gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

from assay.adapt.base import FeatureTuner
from assay.adapt.nmtune_head import NMTuneHead


@dataclass(frozen=True, kw_only=True)
class LinearTuning(FeatureTuner):
    """A linear classifier on frozen features (the linear probing of Chen et al., 2024, arXiv:2309.17002).

    Shapes, options and errors: see FeatureTuner.
    """

    lr: float = 1e-2

    def head(self, dim: int, classes: int) -> NMTuneHead:
        return NMTuneHead(dim, classes, layers=0)
