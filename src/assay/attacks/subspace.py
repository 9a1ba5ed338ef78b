"""The low-frequency subspace of images, from which query attacks draw their probes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import Draws


def cosines(n: int, k: int) -> Float[Tensor, "n k"]:
    """The ``k`` lowest of the n orthonormal vectors of the DCT-II, as float64 columns."""
    place = torch.arange(n, dtype=torch.float64)[:, None] + 0.5
    waves = torch.cos(math.pi / n * place * torch.arange(k, dtype=torch.float64)) * math.sqrt(2 / n)
    waves[:, 0] = math.sqrt(1 / n)
    return waves


@dataclass(frozen=True)
class LowFrequency:
    """Images (c, h, w) whose 2-D cosine transform is zero outside the lowest h / factor times w / factor frequencies.

    Guo et al. (2018, arXiv:1809.08758, section 3.1). ``factor`` 1 is the whole space, of samples of any shape. Raises
    InputError where a sample is no image or has less than ``factor`` pixels a side.
    """

    shape: tuple[int, ...]
    factor: float

    def __post_init__(self) -> None:
        if self.factor == 1:
            return
        if len(self.shape) != 3:
            raise InputError(f"low frequencies: a sample has shape {self.shape}; expected an image (c, h, w)")
        if min(self.shape[1:]) < self.factor:
            raise InputError(
                f"low frequencies: images of {self.shape[1]} x {self.shape[2]} pixels; "
                f"expected at least {self.factor:g}, the factor, a side"
            )

    @cached_property
    def coefficients(self) -> tuple[int, ...]:
        """The shape of a point's coefficients."""
        if self.factor == 1:
            return self.shape
        return (self.shape[0], *(int(n / self.factor) for n in self.shape[1:]))

    @cached_property
    def dimension(self) -> int:
        """The subspace's dimension."""
        return math.prod(self.coefficients)

    @cached_property
    def _bases(self) -> tuple[Tensor, Tensor]:
        (_, h, w), (_, a, b) = self.shape, self.coefficients
        return cosines(h, a), cosines(w, b)

    def normal(self, draws: Draws, m: int, like: Tensor) -> Float[Tensor, "m ..."]:
        """``m`` points with standard normal coefficients for the one sample of ``draws``, of the type of ``like``."""
        c = draws.normal(m, *self.coefficients)[0].to(like)
        if self.factor == 1:
            return c
        rows, columns = (b.to(like) for b in self._bases)
        return rows @ c @ columns.T
