"""A small variational autoencoder of representations: what a set of samples looks like, without labels."""

from __future__ import annotations

import warnings
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import seeded, torch_rng
from assay.training import Plan, State, fit

COLLAPSED = 1e-6


def check_sizes(dim: int, latent: int, out: str) -> None:
    """InputError unless an autoencoder of these can be made."""
    if dim < 1 or latent < 1:
        raise InputError(f"RepresentationVAE: dim={dim}, latent={latent}; expected at least 1")
    if out not in ("sigmoid", "linear"):
        raise unknown("out of RepresentationVAE", str(out), ("sigmoid", "linear"))


class RepresentationVAE(nn.Module):
    """Encoder ``dim``-128-32-(mean, log variance) of ``latent`` entries and its mirror, with ReLU (Shen et al., 2024,
    arXiv:2404.00506; sizes of the official code).

    ``out`` "sigmoid", as there, reaches (0, 1) alone: what lies outside keeps an error. "linear" works on entries
    standardised by ``fit``, and errors are in those units.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, latent: int = 8, out: Literal["sigmoid", "linear"] = "sigmoid") -> None:
        super().__init__()
        check_sizes(dim, latent, out)
        self.dim, self.latent, self.out = dim, latent, out
        self.encoder = nn.Sequential(
            nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, dim)
        )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def encode(self, e: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code, (n, latent) each."""
        mean, log_variance = self.encoder((e - self.mean) / self.deviation).chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """The representation of a code."""
        found = self.decoder(z)
        return found.sigmoid() if self.out == "sigmoid" else found * self.deviation + self.mean

    def error(self, e: Float[Tensor, "n d"], z: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """Squared distance of what ``z`` decodes to from ``e``, summed over entries."""
        return ((self.decode(z) - e) / self.deviation).square().sum(1)

    def forward(self, e: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The error with a code drawn by torch's global generator, as in training and unlearning."""
        mean, log_variance = self.encode(e)
        return self.error(e, mean + (log_variance / 2).exp() * torch.randn_like(mean))

    def loss(self, e: Float[Tensor, "n d"], kl_weight: float = 0.025) -> Float[Tensor, ""]:
        """Mean over samples of the error plus ``kl_weight`` KL(code || standard normal)."""
        mean, log_variance = self.encode(e)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return (self.error(e, z) + kl_weight * kl).mean()

    def recon_error(self, e: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The error at the mean of the code."""
        with torch.no_grad():
            return self.error(e, self.encode(e)[0])

    def fit(
        self,
        e: Float[Tensor, "n d"],
        *,
        seed: int,
        epochs: int = 10,
        batch_size: int = 32,
        lr: float = 1e-3,
        kl_weight: float = 0.025,
    ) -> RepresentationVAE:
        """A copy with new weights, in the precision of ``e``, trained on its rows by Adam.

        Warns where all rows are decoded to the same point; raises InputError for rows that do not fit or are all the
        same.
        """
        if e.dim() != 2 or e.shape[1] != self.dim or not torch.isfinite(e).all():
            raise InputError(f"RepresentationVAE: rows of shape {tuple(e.shape)}; expected finite (n, {self.dim})")
        if len(e) > 1 and bool((e == e[:1]).all()):
            raise InputError("RepresentationVAE: all representations are the same; expected some that differ")
        with seeded(seed, "vae"):
            start = RepresentationVAE(self.dim, self.latent, self.out).to(e.dtype)
        if self.out == "linear" and len(e) > 1:
            deviation, start.mean = torch.std_mean(e, 0)
            start.deviation = deviation.where(deviation > 0, torch.ones_like(deviation))
        # The engine batches positions: representations have no range of their own.
        rows = Data(torch.zeros(len(e), 1), torch.zeros(len(e), dtype=torch.int64), ("row", "none"))

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            return cast(RepresentationVAE, model).loss(e[batch.index], kl_weight)

        plan = Plan(epochs=epochs, batch_size=batch_size, lr=lr, schedule="constant")
        found = cast(RepresentationVAE, fit(start, rows, objective, plan, seed=seed))
        order = torch.randperm(len(e), generator=torch_rng(seed, "look"))[:256]
        with torch.no_grad():
            spread = found.decode(found.encode(e[order])[0]).var(0).sum() if len(order) > 1 else torch.tensor(1.0)
        if spread < COLLAPSED:
            warnings.warn("RepresentationVAE: decodes every representation to one point", RuntimeWarning, stacklevel=2)
        return found
