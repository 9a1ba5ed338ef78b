"""Feature squeezing: how far a prediction moves when the image is coarsened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.data.filters import median, quantised
from assay.detect.base import Detector, FittedDetector
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, check_logits, device_of, evaluating


@dataclass(kw_only=True)
class FittedFeatureSqueezing(FittedDetector):
    """Score in [0, 2]: the largest l1 distance between softmax outputs for the image and a squeezed one."""

    bits: int = 1
    window: int = 2

    def squeezed(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n c h w"]]:
        """The image at ``bits`` a channel and under the median; slopes go through rounding as through the identity."""
        coarse = x + (quantised(x, 2**self.bits, self.bounds) - x).detach()
        return [coarse, median(x, self.window)]

    def graph(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        plain, *others = (self.model(z).double().softmax(1) for z in (x, *self.squeezed(x)))
        return torch.stack([(plain - p).abs().sum(1) for p in others]).amax(0)

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        with evaluating(self.model):
            return batched(self.graph, x, batch_size=self.batch_size, device=device_of(self.model))


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(Detector):
    """Joint detection with two squeezers (Xu et al., 2018, arXiv:1704.01155, section 5.1, eq. 4): depth reduced to
    ``bits`` a channel, and the median over ``window`` x ``window`` pixels; the larger distance counts.

    The defaults are the paper's for MNIST; it takes 5 bits for colour photographs, and there also non-local means,
    which is not offered. Nothing is learned. Shapes and errors: see Detector; InputError for inputs that are no images.
    """

    finds: ClassVar[tuple[str, ...]] = ("attacks",)

    bits: int = 1
    window: int = 2

    def learn(self, model: nn.Module, data: Data) -> FittedFeatureSqueezing:
        if self.bits < 1 or self.window < 1 or len(data.shape) != 3:
            raise InputError(
                f"FeatureSqueezing: bits={self.bits}, window={self.window}, samples of shape {data.shape}; expected "
                "both at least 1 and images (c, h, w)"
            )
        check_logits("FeatureSqueezing", model, data.x[:1])
        return FittedFeatureSqueezing(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            bits=self.bits,
            window=self.window,
        )
