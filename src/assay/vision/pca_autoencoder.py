"""The linear image generator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.vision.conv_ae import ImageGenerator


class PCAAutoencoder(ImageGenerator):
    """Principal components: z = V (x - mean), and mean + V^T z clipped to [0, 1]. Latents are (n, k)."""

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Float[Tensor, "c h w"], components: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return (x - self.mean).flatten(1) @ self.components.T

    def decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        return ((z @ self.components).view(-1, *self.mean.shape) + self.mean).clamp(0, 1)

    @classmethod
    def fit(cls, data: Data, k: int = 16) -> PCAAutoencoder:
        """The ``k`` first components of the images; InputError for more than there are samples or pixels."""
        check_inputs("PCAAutoencoder", data.x, bounds=(0.0, 1.0))
        flat = data.x.flatten(1)
        if not 1 <= k <= min(flat.shape):
            raise InputError(f"PCAAutoencoder: k={k} of {tuple(flat.shape)}; expected 1 to {min(flat.shape)}")
        mean = flat.mean(0)
        v = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:k]
        return cls(mean.view(data.shape), v.contiguous()).eval()
