"""A network on frozen features, by cross-entropy alone."""

from __future__ import annotations

from dataclasses import dataclass

from assay.adapt.base import FeatureTuner
from assay.adapt.nmtune_head import NMTuneHead


@dataclass(frozen=True, kw_only=True)
class MLPTuning(FeatureTuner):
    """NMTuneHead without regularisers (the MLP tuning of Chen et al., 2024, arXiv:2309.17002).

    Shapes, options and errors: see FeatureTuner and NMTuneHead.
    """

    ratio: int = 4
    layers: int = 1
    residual: bool = True

    def head(self, dim: int, classes: int) -> NMTuneHead:
        return NMTuneHead(dim, classes, self.ratio, self.layers, self.residual)
