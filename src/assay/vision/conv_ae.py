"""Image generators to move along: autoencoders whose decoder takes every latent to an image in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.cluster import KMeans
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, evaluating
from assay.runtime.random import derive, seeded
from assay.training import Plan, State, fit


class ImageGenerator(nn.Module):
    """``encode`` (n, c, h, w) in [0, 1] -> latents (n, ...); ``decode`` back. A decoder that quantises passes gradients
    straight through to the latents that it was given."""

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        """The latents of images."""
        raise TypeError(f"{type(self).__name__} states no encoder")

    def decode(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
        """The images of latents."""
        raise TypeError(f"{type(self).__name__} states no decoder")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The reconstructions of images."""
        return self.decode(self.encode(x))


class ConvAE(ImageGenerator):
    """A small convolutional autoencoder with a codebook (van den Oord et al., 2017, arXiv:1711.00937).

    Images of ``shape`` become maps of ``channels`` channels, halved ``down`` times; every place of the map is replaced
    by the nearest of ``codes`` codes. InputError where the sides are no multiples of 2^down.
    """

    def __init__(
        self, shape: Sequence[int] = (1, 28, 28), codes: int = 64, channels: int = 8, width: int = 32, down: int = 2
    ) -> None:
        super().__init__()
        if shape[1] % 2**down or shape[2] % 2**down:
            raise InputError(f"ConvAE: images of {shape[1]} x {shape[2]}; expected sides that halve {down} times")
        first, last = nn.Conv2d(shape[0], width, 3, 1, 1), nn.Conv2d(width, shape[0], 3, 1, 1)
        smaller = [m for _ in range(down) for m in (nn.Conv2d(width, width, 4, 2, 1), nn.ReLU())]
        larger = [m for _ in range(down) for m in (nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU())]
        self.encoder = nn.Sequential(first, nn.ReLU(), *smaller, nn.Conv2d(width, channels, 1))
        self.decoder = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), *larger, last, nn.Sigmoid())
        self.codebook = nn.Parameter(torch.randn(codes, channels))
        self.quantised = True

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        return self.encoder(x)

    def nearest(self, z: Float[Tensor, "n k h2 w2"]) -> Float[Tensor, "n k h2 w2"]:
        """The nearest code at every place."""
        flat = z.movedim(1, -1)
        which = torch.cdist(flat.flatten(0, -2), self.codebook).argmin(1)
        return self.codebook[which].view_as(flat).movedim(-1, 1)

    def decode(self, z: Float[Tensor, "n k h2 w2"]) -> Float[Tensor, "n c h w"]:
        return self.decoder(z + (self.nearest(z) - z).detach() if self.quantised else z)

    @classmethod
    def fit(
        cls,
        data: Data,
        *,
        seed: int,
        codes: int = 64,
        channels: int = 8,
        width: int = 32,
        down: int = 2,
        steps: int = 1000,
        batch_size: int = 64,
        lr: float = 3e-3,
    ) -> ConvAE:
        """Train on the images of ``data``: first without codes, then with codes that start at the k-means centres.

        Half of the steps each. The loss is the squared error, then with |sg(z) - e|^2 + 0.25 |z - sg(e)|^2 besides.
        InputError for images outside [0, 1], and where their maps have fewer places than there are codes.
        """
        check_inputs("ConvAE", data.x, bounds=(0.0, 1.0))
        with seeded(seed, "conv-ae"):
            net = cls(data.shape, codes, channels, width, down)
        net.quantised = False
        plan = Plan(steps=steps // 2, batch_size=batch_size, lr=lr)
        net = _trained(net, data, plan, seed)
        with evaluating(net):
            z = batched(net.encode, data.x[:2000]).movedim(1, -1).flatten(0, -2)
        if len(z) < codes:
            raise InputError(f"ConvAE: {len(z)} places on {len(data)} images; expected at least codes={codes} of them")
        centres = KMeans(codes, n_init=1, max_iter=20, random_state=derive(seed, "codes") % 2**32).fit(z.numpy())
        net.codebook.data = torch.from_numpy(centres.cluster_centers_).to(net.codebook)
        net.quantised = True
        return _trained(net, data, plan, derive(seed, "quantised"))


def _trained(net: ConvAE, data: Data, plan: Plan, seed: int) -> ConvAE:
    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        assert isinstance(model, ConvAE)
        z = model.encode(batch.x)
        loss = F.mse_loss(model.decode(z), batch.x)
        if not model.quantised:
            return loss
        code = model.nearest(z)
        return loss + F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())

    trained = fit(net, data, objective, plan, seed=seed)
    assert isinstance(trained, ConvAE)
    return trained
