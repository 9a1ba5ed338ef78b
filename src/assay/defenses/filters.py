"""Purifiers without anything learned: fixed filters in front of the model (Xu et al., 2018; Guo et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay.data import Data
from assay.data.filters import Bounds, gaussian_blur, jpeg, median, quantised
from assay.defenses.purifier import InputMap, Purifier
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable


@rebuildable
class FilterMap(InputMap):
    """One filter of ``data.filters`` by ``name`` at ``strength``; only the blur has a slope of its own."""

    def __init__(self, name: str, strength: float, bounds: Bounds = (0.0, 1.0)) -> None:
        super().__init__()
        self.name, self.strength, self.bounds = name, strength, (bounds[0], bounds[1])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The filtered images."""
        if self.name == "jpeg":
            return jpeg(x, int(self.strength), self.bounds)
        if self.name == "median":
            return median(x, int(self.strength))
        if self.name == "bits":
            return quantised(x, 2**self.strength, self.bounds)
        return gaussian_blur(x, self.strength)

    def backward_map(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The identity for JPEG and rounding; median and blur have slopes."""
        return self(x) if self.name in ("median", "blur") else x


@dataclass(frozen=True, kw_only=True)
class Jpeg(Purifier):
    """JPEG compression of ``quality`` 1 to 95 (Guo et al., 2018, arXiv:1711.00117, section 4.1)."""

    quality: int = 75

    def learn(self, data: Data, *, seed: int) -> FilterMap:
        if not 1 <= self.quality <= 95:
            raise InputError(f"Jpeg: quality={self.quality}; expected 1 to 95")
        return FilterMap("jpeg", self.quality, data.bounds)


@dataclass(frozen=True, kw_only=True)
class Median(Purifier):
    """The median over windows of ``size`` pixels (Xu et al., 2018, arXiv:1704.01155, section 3.2)."""

    size: int = 3

    def learn(self, data: Data, *, seed: int) -> FilterMap:
        if self.size < 1:
            raise InputError(f"Median: size={self.size}; expected at least 1")
        return FilterMap("median", self.size, data.bounds)


@dataclass(frozen=True, kw_only=True)
class BitDepth(Purifier):
    """Rounding to ``bits`` a channel (Xu et al., 2018, arXiv:1704.01155, section 3.1)."""

    bits: int = 4

    def learn(self, data: Data, *, seed: int) -> FilterMap:
        if self.bits < 1:
            raise InputError(f"BitDepth: bits={self.bits}; expected at least 1")
        return FilterMap("bits", self.bits, data.bounds)


@dataclass(frozen=True, kw_only=True)
class Blur(Purifier):
    """A Gaussian of ``sigma`` pixels, the low-pass filter that a learned purifier has to beat."""

    sigma: float = 0.7

    def learn(self, data: Data, *, seed: int) -> FilterMap:
        if not self.sigma > 0:
            raise InputError(f"Blur: sigma={self.sigma}; expected above 0")
        return FilterMap("blur", self.sigma, data.bounds)
