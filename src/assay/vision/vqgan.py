"""Pretrained vector-quantised autoencoders as image generators."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from assay.vision.conv_ae import ImageGenerator


class HFVQModel(ImageGenerator):
    """A ``VQModel`` of Hugging Face diffusers: images in [-1, 1] inside, its decoder quantises straight-through."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        return self.model.encode(2 * x - 1).latents

    def decode(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
        return (self.model.decode(z).sample / 2 + 0.5).clamp(0, 1)


class TamingVQGAN(ImageGenerator):
    """A ``VQModel`` of CompVis taming-transformers: latents are what its quantiser takes, images in [-1, 1] inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        return self.model.quant_conv(self.model.encoder(2 * x - 1))

    def decode(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
        return (self.model.decode(self.model.quantize(z)[0]) / 2 + 0.5).clamp(0, 1)
