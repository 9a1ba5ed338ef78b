"""Random attributions: what an explanation has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from assay.explain.base import Explainer
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class RandomAttribution(Explainer):
    """Uniform numbers in (0, 1) that look at neither model nor input: the baseline of attribution benchmarks
    (Hooker et al., 2019, arXiv:1806.10758, section 4). Shapes and errors: see Explainer.
    """

    def _attribute(self, model: nn.Module, x: Tensor, target: Tensor, draws: Draws) -> Tensor:
        return draws.uniform(*x.shape[1:])
