"""SmoothGrad."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.explain.base import GradientExplainer
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(GradientExplainer):
    """The gradient averaged over Gaussian noise on the input (Smilkov et al., 2017, arXiv:1706.03825, section 2).

    mean over ``samples`` draws of grad f_target(x + s e), e standard normal, s = ``noise`` * (max x - min x) of the
    sample (the paper's noise level; 10% to 20% work well). Noise is drawn for each named sample and may leave the
    range of the data. Units: logits per unit of ``x``. Shapes and errors: see Explainer.
    """

    samples: int = 50
    noise: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or not 0 <= self.noise < float("inf"):
            raise InputError(
                f"SmoothGrad: samples={self.samples}, noise={self.noise}; expected samples >= 1 and a finite noise >= 0"
            )

    def weights(self) -> Tensor:
        return torch.full((self.samples,), 1 / self.samples, dtype=torch.float64)

    def points(self, x: Tensor, draws: Draws) -> Tensor:
        flat = x.flatten(1)
        spread = (self.noise * (flat.amax(1) - flat.amin(1))).reshape(-1, 1, *[1] * (x.dim() - 1))
        return x[:, None] + spread * draws.normal(self.samples, *x.shape[1:]).to(x)
