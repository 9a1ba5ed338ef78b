"""The networks that a denoised black box stands behind: a residual denoiser and a convolutional autoencoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.defenses.purifier import InputMap
from assay.runtime.spec import rebuildable


@rebuildable
class DnCNN(nn.Module):
    """x - net(x): a convolution with ReLU, ``depth`` - 2 with batch norm and ReLU, and one last convolution (Zhang et
    al., 2017, arXiv:1608.03981). Orthogonal start; the last layer starts at 0, so that nothing is removed at first.
    """

    def __init__(self, channels: int = 3, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        body: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
        for _ in range(depth - 2):
            body += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        last = nn.Conv2d(width, channels, 3, 1, 1, bias=False)
        self.body = nn.Sequential(*body, last)
        for m in body:
            if isinstance(m, nn.Conv2d):
                nn.init.orthogonal_(m.weight)
        nn.init.zeros_(last.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x - self.body(x)


@rebuildable
class ConvEncoder(nn.Module):
    """Two convolutions: half the size with ``width`` maps, then ``latent`` maps by a ``kernel`` with ``stride``.

    With width 3, latent 12, kernel 5 and stride 3 a 28 x 28 image has the code 12 x 4 x 4 of the official code.
    """

    def __init__(self, channels: int = 1, width: int = 3, latent: int = 12, kernel: int = 5, stride: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, latent, kernel, stride), nn.ReLU()
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k a b"]:
        return self.body(x)


@rebuildable
class ConvDecoder(nn.Module):
    """The mirror image of ``ConvEncoder``, with values in (0, 1)."""

    def __init__(self, channels: int = 1, width: int = 3, latent: int = 12, kernel: int = 5, stride: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ConvTranspose2d(latent, width, kernel, stride), nn.ReLU(), nn.ConvTranspose2d(width, channels, 4, 2, 1)
        )

    def forward(self, z: Float[Tensor, "n k a b"]) -> Float[Tensor, "n c h w"]:
        return torch.sigmoid(self.body(z))


@rebuildable
class DenoiseMap(InputMap):
    """decode(encode(denoise(x))); without an autoencoder denoise(x). Inputs may lie outside [0, 1], as noise does."""

    differentiable = True

    def __init__(self, denoiser: nn.Module, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.encoder = nn.Identity() if encoder is None else encoder
        self.decoder = nn.Identity() if decoder is None else decoder

    def latent(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        """The code of denoised inputs, or the denoised inputs themselves."""
        return self.encoder(self.denoiser(x))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.decoder(self.latent(x))
