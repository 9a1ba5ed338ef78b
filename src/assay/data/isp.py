"""Cameras: Bayer mosaics and their inverses, the way from shown colours back to RAW, and a plain pipeline forwards.

RAW is packed: (n, 4, h / 2, w / 2), a channel for each place of the 2 x 2 pattern, row by row. ``pattern`` names their
colours, "rggb" for a red pixel in the corner. Images are (n, 3, h, w) with values in [0, 1]. A crop or flip keeps the
pattern only if it moves the mosaic by an even number of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.data.filters import median
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws

Pattern = Literal["rggb", "bggr", "grbg", "gbrg"]
PATTERNS = ("rggb", "bggr", "grbg", "gbrg")
COLOUR = {"r": 0, "g": 1, "b": 2}
HIGHLIGHT = 0.9  # mean linear value above which inverse gains fade out (Brooks et al., 2019, section 3.4)
RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
XYZ_TO_CAMERAS = (  # of the four cameras of the Darmstadt data set
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)


def _check(where: str, x: Tensor, channels: int, pattern: str) -> None:
    if pattern not in PATTERNS:
        raise unknown("Bayer pattern", pattern, PATTERNS)
    if x.dim() != 4 or x.shape[1] != channels or len(x) == 0:
        raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected (n, {channels}, h, w) with n >= 1")


def mosaic(rgb: Float[Tensor, "n 3 h w"], pattern: Pattern = "rggb") -> Float[Tensor, "n 4 h2 w2"]:
    """What a sensor under a Bayer filter sees, packed. ``h`` and ``w`` even."""
    _check("mosaic", rgb, 3, pattern)
    if rgb.shape[2] % 2 or rgb.shape[3] % 2:
        raise InputError(f"mosaic: images of {tuple(rgb.shape[2:])} pixels; expected even numbers")
    parts = F.pixel_unshuffle(rgb, 2).unflatten(1, (3, 4))
    return torch.stack([parts[:, COLOUR[c], k] for k, c in enumerate(pattern)], 1)


def _sites(pattern: str, plane: Tensor) -> Bool[Tensor, "3 h w"]:
    """Where the mosaic ``plane`` (n, 1, h, w) holds each colour."""
    small = torch.tensor([[COLOUR[c] for c in pattern]], device=plane.device)[..., None, None]
    h, w = plane.shape[2] // 2, plane.shape[3] // 2
    colours = F.pixel_shuffle(small.expand(1, 4, h, w), 2)[0, 0]
    return colours == torch.arange(3, device=plane.device)[:, None, None]


def demosaic_bilinear(raw: Float[Tensor, "n 4 h w"], pattern: Pattern = "rggb") -> Float[Tensor, "n 3 h2 w2"]:
    """Each missing value is the mean of its two or four nearest samples of that colour; fewer at the border."""
    _check("demosaic_bilinear", raw, 4, pattern)
    plane = F.pixel_shuffle(raw, 2)
    sites = _sites(pattern, plane).to(raw)
    square, cross = (
        ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0)),
        ((0.0, 1.0, 0.0), (1.0, 4.0, 1.0), (0.0, 1.0, 0.0)),
    )
    kernel = torch.tensor((square, cross, square), dtype=raw.dtype, device=raw.device)[:, None]
    gathered = F.conv2d(plane * sites, kernel, padding=1, groups=3)
    return gathered / F.conv2d(sites[None], kernel, padding=1, groups=3)


def _malvar_kernels(like: Tensor) -> Float[Tensor, "4 1 5 5"]:
    """Green at red or blue; a colour at green with its samples left and right, and above and below; red at blue."""
    green = [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
    beside = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
    across = [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]
    kernels = torch.tensor([green, beside, beside, across], dtype=like.dtype, device=like.device) / 8
    kernels[2] = kernels[2].T.clone()
    return kernels[:, None]


def demosaic_malvar(raw: Float[Tensor, "n 4 h w"], pattern: Pattern = "rggb") -> Float[Tensor, "n 3 h2 w2"]:
    """Bilinear, corrected by the Laplacian of the colour that was sampled (Malvar et al., 2004, figure 2): linear
    filters of 5 x 5. The border is mirrored about its pixels, which keeps the pattern. Needs 4 x 4 pixels."""
    _check("demosaic_malvar", raw, 4, pattern)
    if min(raw.shape[2:]) < 2:
        raise InputError(f"demosaic_malvar: RAW of {tuple(raw.shape[2:])}; expected at least 2 x 2 packed pixels")
    plane = F.pixel_shuffle(raw, 2)
    sites = _sites(pattern, plane)
    green, beside, above, across = F.conv2d(F.pad(plane, (2, 2, 2, 2), mode="reflect"), _malvar_kernels(raw)).unbind(1)
    own = plane[:, 0]
    colours = []
    for c in range(3):
        if c == COLOUR["g"]:
            colours.append(torch.where(sites[c], own, green))
            continue
        rows, columns = sites[c].any(1, keepdim=True), sites[c].any(0, keepdim=True)
        other = torch.where(rows, beside, torch.where(columns, above, across))
        colours.append(torch.where(sites[c], own, other))
    return torch.stack(colours, 1)


@dataclass(frozen=True)
class Metadata:
    """The camera of each of n images, or of all (n = 1): ``gains`` (n, 3) of white balance, and ``matrix`` (n, 3, 3)
    from the linear colours of a screen to those of the camera, whose rows sum to 1."""

    gains: Float[Tensor, "n 3"]
    matrix: Float[Tensor, "n 3 3"]


def _matrices() -> Float[Tensor, "4 3 3"]:
    found = torch.tensor(XYZ_TO_CAMERAS, dtype=torch.float64) @ torch.tensor(RGB_TO_XYZ, dtype=torch.float64)
    return found / found.sum(2, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class UnprocessISP:
    """An invertible model of a camera's pipeline (Brooks et al., 2019, arXiv:1811.11127, section 3).

    Without ``seed`` there is one canonical camera: gains of 2.15 (red) and 1.7 (blue), the mean of the four matrices.
    With it each image has its own: red U(1.9, 2.4), blue U(1.5, 1.9), and a random convex mixture of the matrices.
    """

    seed: int | None = None

    def cameras(self, index: Int[Tensor, " n"]) -> Metadata:
        """The cameras of the images that ``index`` names; the canonical one is a single row."""
        known = _matrices()
        if self.seed is None:
            return Metadata(torch.tensor([[2.15, 1.0, 1.7]], dtype=torch.float64), known.mean(0, keepdim=True))
        u = Draws(self.seed, "cameras", index).uniform(6).double()
        gains = torch.stack((1.9 + 0.5 * u[:, 0], torch.ones(len(u), dtype=torch.float64), 1.5 + 0.4 * u[:, 1]), 1)
        shares = -u[:, 2:].log()
        return Metadata(gains, torch.einsum("nk,kij->nij", shares / shares.sum(1, keepdim=True), known))

    def unprocess(
        self, rgb: Float[Tensor, "n 3 h w"], index: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "n 3 h w"], Metadata]:
        """Linear colours of the camera for shown colours in [0, 1], and the camera. They are not clipped.

        Tone curve, gamma, colour matrix and white balance are undone; in highlights, where the mean linear value is
        above 0.9, the inverse gains fade to 1 so that white stays white. Below, ``process`` gives the image back.
        """
        _check("unprocess", rgb, 3, "rggb")
        if float(rgb.min()) < -1e-6 or float(rgb.max()) > 1 + 1e-6:
            raise InputError(f"unprocess: values span [{rgb.min():.4g}, {rgb.max():.4g}]; expected [0, 1]")
        metadata = self.cameras(torch.arange(len(rgb)) if index is None else index)
        linear = 0.5 - torch.sin(torch.asin((1 - 2 * rgb).clamp(-1, 1)) / 3)  # inverse of 3 x^2 - 2 x^3
        linear = linear.clamp_min(1e-8) ** 2.2
        seen = _mixed(metadata.matrix, linear)
        inverse = (1 / metadata.gains).to(rgb)[..., None, None]
        fade = ((seen.mean(1, keepdim=True) - HIGHLIGHT).clamp_min(0) / (1 - HIGHLIGHT)).clamp_max(1) ** 2
        return seen * torch.maximum(fade + (1 - fade) * inverse, inverse), metadata

    def process(self, raw: Float[Tensor, "n 3 h w"], metadata: Metadata | None = None) -> Float[Tensor, "n 3 h w"]:
        """Shown colours for linear ones: white balance, colour matrix, gamma and tone curve. The canonical camera needs
        no ``metadata``."""
        _check("process", raw, 3, "rggb")
        if metadata is None and self.seed is not None:
            raise InputError("process: no metadata; expected those of unprocess, for each image has its own camera")
        camera = self.cameras(torch.arange(1)) if metadata is None else metadata
        balanced = (raw * camera.gains.to(raw)[..., None, None]).clamp(max=1)
        linear = _mixed(torch.linalg.inv(camera.matrix), balanced).clamp(0, 1)
        shown = linear.clamp_min(1e-8) ** (1 / 2.2)
        return (3 * shown**2 - 2 * shown**3).clamp(0, 1)

    def capture(
        self,
        rgb: Float[Tensor, "n 3 h w"],
        *,
        scale: int = 1,
        pattern: Pattern = "rggb",
        index: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n 4 a b"]:
        """Packed RAW in [0, 1] of shown images: with ``scale`` 1 as large as they are, for a mosaic of twice their size
        (they are enlarged bilinearly before); with 2 half as large, from the images' own pixels."""
        if scale not in (1, 2):
            raise InputError(f"capture: scale = {scale}; expected 1 or 2")
        _check("capture", rgb, 3, pattern)
        large = F.interpolate(rgb, scale_factor=2, mode="bilinear", align_corners=False) if scale == 1 else rgb
        return mosaic(self.unprocess(large, index)[0].clamp(0, 1), pattern)


def _mixed(matrix: Float[Tensor, "m 3 3"], x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    return torch.einsum("nij,njhw->nihw", matrix.to(x).expand(len(x), 3, 3), x)


def shot_and_read_noise(
    raw: Float[Tensor, "n ..."], shot: float, read: float, *, generator: torch.Generator
) -> Float[Tensor, "n ..."]:
    """``raw`` with noise of variance shot * raw + read (Brooks et al., 2019, eq. 2); real cameras have ``shot`` between
    1e-4 and 0.012. The result may leave [0, 1]."""
    if shot < 0 or read < 0:
        raise InputError(f"shot_and_read_noise: shot = {shot}, read = {read}; expected none below 0")
    drawn = torch.randn(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
    return raw + (shot * raw.clamp_min(0) + read).sqrt() * drawn


@dataclass(frozen=True, kw_only=True)
class SimpleISP:
    """Packed RAW to shown colours without anything learned: ``black_level`` and a median of ``denoise`` pixels in each
    channel (1: none), demosaicing ("bilinear" or "malvar"), then the canonical camera's ``process``. ``scale`` 1 halves
    the mosaic's size by averaging, so that images are as large as the packed RAW; 2 keeps the mosaic's size.
    """

    pattern: Pattern = "rggb"
    demosaic: Literal["bilinear", "malvar"] = "bilinear"
    black_level: float = 0.0
    denoise: int = 1
    scale: int = 1

    def __post_init__(self) -> None:
        if self.demosaic not in ("bilinear", "malvar"):
            raise unknown("demosaicing of SimpleISP", str(self.demosaic), ("bilinear", "malvar"))
        if not 0 <= self.black_level < 1 or self.denoise < 1 or self.scale not in (1, 2):
            found = f"black_level={self.black_level}, denoise={self.denoise}, scale={self.scale}"
            raise InputError(f"SimpleISP: {found}; expected a level in [0, 1), a window >= 1, a scale of 1 or 2")

    def __call__(self, raw: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 a b"]:
        """The images, in [0, 1]."""
        _check("SimpleISP", raw, 4, self.pattern)
        light = ((raw - self.black_level) / (1 - self.black_level)).clamp(0, 1)
        light = median(light, self.denoise) if self.denoise > 1 else light
        method = demosaic_bilinear if self.demosaic == "bilinear" else demosaic_malvar
        shown = UnprocessISP().process(method(light, self.pattern).clamp(0, 1))
        return F.avg_pool2d(shown, 2) if self.scale == 1 else shown
