"""A classifier for smoothing, from an encoder that is told how noisy its input is."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError


class LevelClassifier(nn.Module):
    """``classifier(x) -> (n, c)`` for x in ``bounds`` plus noise of deviation ``sigma``, in the units of x.

    Lei et al., 2025, arXiv:2501.13094: ``encoder(z, level)`` was trained on images z in [-1, 1], a range of width 2, so
    that the noise it sees is 2 sigma / (high - low); ``level`` is the one of its ``levels`` (m,) that is nearest to
    that. A certificate of the classifier holds in the units of x. ``head`` maps representations to logits. Raises
    InputError unless sigma >= 0, there are levels, and low < high.
    """

    level: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        sigma: float,
        levels: Float[Tensor, " m"],
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not 0 <= sigma < float("inf") or levels.dim() != 1 or len(levels) == 0 or not bounds[0] < bounds[1]:
            given = f"sigma={sigma}, levels {tuple(levels.shape)}, bounds={list(bounds)}"
            raise InputError(f"LevelClassifier: {given}; expected sigma >= 0, levels (m,), low < high")
        self.encoder, self.head, self.bounds = encoder, head, bounds
        seen = 2 * sigma / (bounds[1] - bounds[0])
        self.register_buffer("level", levels[(levels - seen).abs().argmin()].detach().clone().float())

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Logits, in one pass of the encoder."""
        low, high = self.bounds
        return self.head(self.encoder(2 * (x - low) / (high - low) - 1, self.level.expand(len(x))))
