"""CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from assay.labels.mixup import Mixup
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class CutMix(Mixup):
    """Training on images with a box of another one, labels mixed by area (Yun et al., 2019, arXiv:1905.04899, eq. 1-2).

    The box has sqrt(1 - lambda) of either side and a centre uniform over the image, where it is cut off; the share of
    the first label is the area that is left, lambda ~ Beta(``alpha``, ``alpha``), one box a batch. Every batch is
    mixed. Samples are (c, h, w); InputError for others.
    """

    stream: ClassVar[str] = "CutMix"

    def mixed(
        self, x: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], share: float, state: State
    ) -> tuple[Float[Tensor, "b c h w"], float]:
        if x.dim() != 4:
            raise InputError(f"CutMix: x has shape {tuple(x.shape)}; expected images (n, c, h, w)")
        rng, spans = numpy_rng(state.seed, "CutMix/box", state.step), []
        for side in x.shape[2:]:
            centre, half = int(rng.integers(side)), int(side * (1 - share) ** 0.5) // 2
            spans.append(slice(max(centre - half, 0), min(centre + half, side)))
        out = x.clone()
        out[:, :, spans[0], spans[1]] = other[:, :, spans[0], spans[1]]
        box = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
        return out, 1 - box / (x.shape[2] * x.shape[3])
