"""Mosaics by hand, demosaicing where it is exact, and the camera's way there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from assay.data.isp import (
    PATTERNS,
    Pattern,
    SimpleISP,
    UnprocessISP,
    demosaic_bilinear,
    demosaic_malvar,
    mosaic,
    shot_and_read_noise,
)
from assay.runtime.errors import InputError

Demosaic = Callable[..., Tensor]
DEMOSAICS = (demosaic_bilinear, demosaic_malvar)


def ramps(n: int = 12) -> Tensor:
    """Colours that grow linearly, each along a direction of its own."""
    i, j = torch.meshgrid(torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64), indexing="ij")
    return torch.stack((0.1 + 0.03 * i, 0.2 + 0.02 * j, 0.05 + 0.01 * i + 0.03 * j))[None]


def images(n: int, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_mosaic_by_hand() -> None:
    rgb = images(1, 4)
    raw = mosaic(rgb, "grbg")
    assert raw.shape == (1, 4, 2, 2)
    for k, colour in enumerate((1, 0, 2, 1)):
        assert raw[0, k].equal(rgb[0, colour, k // 2 :: 2, k % 2 :: 2])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_constant_colours_come_back_everywhere_and_ramps_inside(demosaic: Demosaic, pattern: Pattern) -> None:
    flat = torch.tensor([0.7, 0.2, 0.4], dtype=torch.float64)[None, :, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(demosaic(mosaic(flat, pattern), pattern), flat, rtol=0, atol=1e-12)
    found = demosaic(mosaic(ramps(), pattern), pattern)
    torch.testing.assert_close(found[..., 2:-2, 2:-2], ramps()[..., 2:-2, 2:-2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_samples_are_kept_and_another_pattern_is_wrong(demosaic: Demosaic) -> None:
    raw = mosaic(images(2))
    assert mosaic(demosaic(raw)).allclose(raw, atol=1e-12)
    flat = torch.tensor([0.7, 0.2, 0.4], dtype=torch.float64)[None, :, None, None].expand(1, 3, 8, 8)
    assert float((demosaic(mosaic(flat), "bggr") - flat).abs().max()) > 0.25


def test_bilinear_at_a_red_site_by_hand() -> None:
    plane = torch.arange(36, dtype=torch.float64).reshape(6, 6) ** 1.5
    raw = torch.stack([plane[k // 2 :: 2, k % 2 :: 2] for k in range(4)])[None]
    found = demosaic_bilinear(raw)[0, :, 2, 2]
    green = (plane[1, 2] + plane[3, 2] + plane[2, 1] + plane[2, 3]) / 4
    blue = (plane[1, 1] + plane[1, 3] + plane[3, 1] + plane[3, 3]) / 4
    torch.testing.assert_close(found, torch.stack((plane[2, 2], green, blue)))


def test_malvar_at_each_kind_of_site_by_hand() -> None:
    """Figure 2 of the paper: bilinear plus a share of the Laplacian of the colour sampled at the site."""
    plane = torch.rand(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    raw = torch.stack([plane[k // 2 :: 2, k % 2 :: 2] for k in range(4)])[None]
    found, p = demosaic_malvar(raw)[0], plane
    far = (p[2, 4] + p[6, 4] + p[4, 2] + p[4, 6]) / 4
    near = (p[3, 4] + p[5, 4] + p[4, 3] + p[4, 5]) / 4
    diagonal = (p[3, 3] + p[3, 5] + p[5, 3] + p[5, 5]) / 4
    torch.testing.assert_close(found[1, 4, 4], near + (p[4, 4] - far) / 2)  # green at red
    torch.testing.assert_close(found[2, 4, 4], diagonal + 3 * (p[4, 4] - far) / 4)  # blue at red
    five = (p[3, 2] + p[3, 4] + p[5, 2] + p[5, 4] + p[4, 1] + p[4, 5]) / 8 - (p[2, 3] + p[6, 3]) / 16
    torch.testing.assert_close(found[0, 4, 3], (p[4, 2] + p[4, 4]) / 2 + 5 * p[4, 3] / 8 - five)  # red at green


@pytest.mark.parametrize("seed", [None, 3])
def test_there_and_back(seed: int | None) -> None:
    isp, rgb = UnprocessISP(seed=seed), 0.9 * images(6)
    raw, metadata = isp.unprocess(rgb)
    torch.testing.assert_close(isp.process(raw, metadata), rgb, rtol=0, atol=1e-4)
    torch.testing.assert_close(metadata.matrix.sum(2), torch.ones(len(metadata.matrix), 3, dtype=torch.float64))
    white = torch.ones(1, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(isp.process(*isp.unprocess(white)), white, rtol=0, atol=1e-6)
    grey = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    seen, camera = isp.unprocess(grey)
    torch.testing.assert_close(seen[0, :, 0, 0] * camera.gains[0], torch.full((3,), 0.5**2.2, dtype=torch.float64))


def test_a_camera_belongs_to_its_image() -> None:
    isp, rgb = UnprocessISP(seed=1), images(4)
    whole, part = isp.unprocess(rgb)[0], isp.unprocess(rgb[2:], torch.tensor([2, 3]))[0]
    assert whole[2:].equal(part)
    gains = isp.cameras(torch.arange(500)).gains
    assert 1.9 <= float(gains[:, 0].min()) < 1.92 < 2.38 < float(gains[:, 0].max()) <= 2.4
    assert 1.5 <= float(gains[:, 2].min()) < 1.52 < 1.88 < float(gains[:, 2].max()) <= 1.9


def test_the_variance_of_the_noise() -> None:
    raw = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)[:, None].expand(3, 40_000)
    noisy = shot_and_read_noise(raw, 0.01, 0.0005, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.var(1), 0.01 * raw[:, 0] + 0.0005, rtol=0.05, atol=0)
    torch.testing.assert_close(noisy.mean(1), raw[:, 0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("demosaic", ["bilinear", "malvar"])
def test_the_plain_pipeline_shows_what_was_captured(scale: int, demosaic: Literal["bilinear", "malvar"]) -> None:
    i = torch.linspace(0.2, 0.6, 16)
    smooth = torch.stack((i[:, None].expand(16, 16), i[None].expand(16, 16), (i[:, None] + i[None]) / 2))[None]
    raw = UnprocessISP().capture(smooth, scale=scale)
    assert raw.shape == (1, 4, 16 // scale, 16 // scale)
    found = SimpleISP(scale=scale, demosaic=demosaic)(raw)
    assert found.shape == smooth.shape
    assert float((found - smooth)[..., 2:-2, 2:-2].abs().max()) < 0.01
    swapped = SimpleISP(scale=scale, demosaic=demosaic, pattern="bggr")(raw)
    assert float((swapped - smooth)[..., 2:-2, 2:-2].abs().max()) > 0.1


def test_dark_frames_and_outliers_are_taken_out() -> None:
    raw = torch.full((1, 4, 6, 6), 0.3)
    raw[0, 1, 2, 2] = 1.0
    plain, cleaned = SimpleISP()(raw), SimpleISP(denoise=3)(raw)
    assert float(plain.std()) > 0.001 > float((cleaned - SimpleISP()(torch.full_like(raw, 0.3))).abs().max())
    lifted = 0.1 + 0.9 * torch.full((1, 4, 6, 6), 0.3)
    torch.testing.assert_close(SimpleISP(black_level=0.1)(lifted), SimpleISP()(torch.full((1, 4, 6, 6), 0.3)))


def test_bad_input() -> None:
    rgb, isp = images(2), UnprocessISP(seed=1)
    for call in (
        lambda: mosaic(rgb[:, :2]),
        lambda: mosaic(rgb[..., :7]),
        lambda: mosaic(rgb, "rgbg"),  # type: ignore[arg-type]
        lambda: demosaic_bilinear(rgb),
        lambda: demosaic_malvar(torch.rand(1, 4, 1, 1)),
        lambda: isp.unprocess(rgb * 3),
        lambda: isp.process(rgb),
        lambda: isp.capture(rgb, scale=3),
        lambda: shot_and_read_noise(rgb, -1.0, 0.0, generator=torch.Generator()),
        lambda: SimpleISP(scale=4),
        lambda: SimpleISP(demosaic="nearest"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            call()
