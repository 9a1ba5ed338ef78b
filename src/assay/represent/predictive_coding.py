"""Two encoders of two views, trained to tell which belong together."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch
from assay.losses import WPCLoss
from assay.represent.wasserstein_dependency import paired_data
from assay.runtime.errors import InputError
from assay.training import Plan, State, fit


class EncoderPair(nn.Module):
    """``phi`` of the first view, which is the representation, and ``psi`` of the second."""

    def __init__(self, phi: nn.Module, psi: nn.Module) -> None:
        super().__init__()
        self.phi, self.psi = phi, psi

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        return self.phi(x)


@dataclass(frozen=True, kw_only=True)
class PredictiveCoding:
    """``fit(phi, psi, x, y, *, seed) -> EncoderPair`` by WPC (Ozair et al., 2019, arXiv:1903.11780), by CPC with
    ``WPCLoss(0)``.

    Both encoders map (n, ...) to (n, d) and stay as they are; x (n, ...) and y (n, ...) are the two views. Adam. Raises
    InputError for fewer than two pairs, and for batches of one.
    """

    kind: ClassVar[str] = "function"

    loss: WPCLoss = field(default_factory=WPCLoss)
    steps: int = 1000
    batch_size: int = 64
    lr: float = 3e-4

    def fit(
        self, phi: nn.Module, psi: nn.Module, x: Float[Tensor, "n ..."], y: Float[Tensor, "n ..."], *, seed: int
    ) -> EncoderPair:
        """The trained encoders, in evaluation mode."""
        data = paired_data("PredictiveCoding", x, y)
        if self.batch_size < 2:
            raise InputError(f"PredictiveCoding: batch_size={self.batch_size}; expected two or more")
        size = min(self.batch_size, len(data))
        plan = Plan(steps=self.steps, batch_size=size, lr=self.lr, schedule="constant", drop_last=True)
        trained = fit(EncoderPair(phi, psi), data, self.objective, plan, seed=seed)
        if not isinstance(trained, EncoderPair):
            raise TypeError(f"training gave {type(trained).__name__}")
        return trained

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, ""]:
        """The loss of one batch."""
        if not isinstance(model, EncoderPair):
            raise TypeError(f"PredictiveCoding trains an EncoderPair, not a {type(model).__name__}")
        loss, _ = self.loss(model.phi, model.psi, batch.x, batch.fields["y"])
        return loss


def spectral_encoder(encoder: nn.Module) -> nn.Module:
    """A copy of a fully connected ``encoder`` whose linear layers all have spectral norm 1: with ReLU between them its
    slope is at most 1 (Miyato et al., 2018, arXiv:1802.05957), the alternative to the penalty.

    phi . psi is then Lipschitz where embeddings are bounded, as for inputs in a bounded range. Norms are estimated by
    power iteration in training mode. InputError for layers with weights of another kind: their norm would be free.
    """
    found = copy.deepcopy(encoder)
    for name, module in list(found.named_modules()):
        if isinstance(module, nn.Linear):
            nn.utils.parametrizations.spectral_norm(module, n_power_iterations=5)
        elif any(True for _ in module.parameters(recurse=False)):
            kind = type(module).__name__
            raise InputError(
                f"spectral_encoder: layer {name!r} is {kind}; expected linear layers alone to have weights"
            )
    return found
