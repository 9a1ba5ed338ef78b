"""Generators of images from noise, and several of them that take turns in being begun anew."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.random import derive, seeded


class ImageGenerator(nn.Module):
    """Noise (n, nz) to images (n, *shape) in [0, 1], shape (channels, h, w) with h and w divisible by 4.

    The generator of data-free extraction (Truong et al., 2021, arXiv:2011.14779, and Rosenthal et al., 2023, DisGUIDE,
    code): linear to a quarter of the size, batch norm, twice nearest up-sampling and 3x3 convolution, batch norm
    without scale, tanh; its range [-1, 1] is mapped to [0, 1].
    """

    def __init__(self, shape: tuple[int, int, int], nz: int = 256, width: int = 64) -> None:
        super().__init__()
        channels, h, w = shape
        if h % 4 or w % 4:
            raise InputError(f"generator: images of {h} x {w}; expected sides divisible by 4")
        self.start = nn.Linear(nz, 2 * width * (h // 4) * (w // 4))
        self.body = nn.Sequential(
            nn.Unflatten(1, (2 * width, h // 4, w // 4)),
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, 1, 1),
            nn.BatchNorm2d(channels, affine=False),
        )

    def before(self, z: Float[Tensor, "n nz"]) -> Float[Tensor, "n ch h w"]:
        """The images before tanh."""
        return self.body(self.start(z))

    @staticmethod
    def squash(pixels: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """tanh, mapped to [0, 1]."""
        return (pixels.tanh() + 1) / 2

    def forward(self, z: Float[Tensor, "n nz"]) -> Float[Tensor, "n ch h w"]:
        return self.squash(self.before(z))


class GeneratorEnsemble(nn.Module):
    """``count`` generators that differ by their seed; each may be renewed, and then has new weights.

    The paper's generators are "steadily producing diverse data"; how is our reconstruction (see CaBaGe).
    """

    def __init__(self, shape: tuple[int, int, int], count: int, nz: int, width: int, *, seed: int) -> None:
        super().__init__()
        self.shape, self.nz, self.width, self.seed = shape, nz, width, seed
        self.renewals = [0] * count
        self.members = nn.ModuleList(self._made(j) for j in range(count))

    def _made(self, j: int) -> ImageGenerator:
        with seeded(derive(self.seed, "generator", j, self.renewals[j]), "init"):
            return ImageGenerator(self.shape, self.nz, self.width)

    def noise(self, n: int, generator: torch.Generator) -> Float[Tensor, "n nz"]:
        """Standard normal codes on the ensemble's device."""
        return torch.randn(n, self.nz, generator=generator).to(next(self.parameters()))

    @torch.no_grad()
    def renew(self, j: int) -> list[nn.Parameter]:
        """Give generator ``j`` new weights; its parameters, whose optimiser state is out of date."""
        self.renewals[j] += 1
        self.members[j].load_state_dict(self._made(j).state_dict())
        return list(self.members[j].parameters())

    @torch.no_grad()
    def pool(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n ch h w"], Tensor]:
        """``n`` images drawn evenly from all generators, in evaluation mode, and which one each is from."""
        origin = torch.arange(n) % len(self.members)
        z, training = self.noise(n, generator), self.training
        images = torch.empty(n, *self.shape, device=z.device, dtype=z.dtype)
        self.eval()
        for j, member in enumerate(self.members):
            images[origin == j] = member(z[origin == j])
        self.train(training)
        return images, origin


def grey(x: Float[Tensor, "n ch h w"], every: int, channel: int) -> Float[Tensor, "n ch h w"]:
    """Every ``every``-th image with all channels copied from one; 0 leaves all as they are."""
    if every == 0:
        return x
    chosen = (torch.arange(len(x), device=x.device) % every == 0)[:, None, None, None]
    return torch.where(chosen, x[:, channel : channel + 1], x)


def disagreement_loss(probs: Float[Tensor, "k n c"]) -> Float[Tensor, ""]:
    """- mean over samples and classes of the clones' standard deviation (unbiased; Rosenthal et al., 2023, code).

    Probabilities below 1e-12 count as that: the slope of a standard deviation of denormal numbers is not finite.
    """
    return -probs.clamp_min(1e-12).std(0).mean()


def balance_loss(probs: Float[Tensor, "k n c"]) -> Float[Tensor, ""]:
    """sum_c p_c ln p_c of the mean prediction over clones and batch, 1e-6 added: least where classes are balanced."""
    mean = (probs + 1e-6).mean((0, 1))
    return (mean * mean.log()).sum()


def clone_probs(clones: list[nn.Module], x: Float[Tensor, "n ..."]) -> Float[Tensor, "k n c"]:
    """The softmax of every clone."""
    return torch.stack([F.softmax(clone(x), dim=1) for clone in clones])
