"""The color map against Pillow, its own inverse, and its bad inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from assay.data import rgb_to_ycbcr, ycbcr_to_rgb
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

LEVELS = torch.randint(256, (3, 3, 9, 7), generator=torch_rng(0, "levels"))


def test_every_channel_is_within_one_level_of_pillow() -> None:
    ours = (255 * rgb_to_ycbcr(LEVELS / 255, centered=False)).permute(0, 2, 3, 1).numpy()
    for image, ycbcr in zip(LEVELS.permute(0, 2, 3, 1).numpy().astype(np.uint8), ours, strict=True):
        assert np.abs(np.asarray(Image.fromarray(image).convert("YCbCr"), float) - ycbcr).max() <= 1


@given(st.integers(0, 2**31), st.booleans())
def test_round_trip(seed: int, centered: bool) -> None:
    x = torch.rand(2, 3, 4, 5, generator=torch_rng(seed))
    assert (ycbcr_to_rgb(rgb_to_ycbcr(x, centered), centered) - x).abs().max() < 1e-5


def test_known_colors() -> None:
    colors = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64).view(4, 3, 1, 1)
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.299, -0.168736, 0.5], [0.114, 0.5, -0.081312]])
    torch.testing.assert_close(rgb_to_ycbcr(colors)[:, :, 0, 0], expected.double(), rtol=0, atol=1e-6)


def test_luminance_moves_red_green_and_blue_alike() -> None:
    x = torch.rand(2, 3, 4, 5, generator=torch_rng(1), dtype=torch.float64)
    z = rgb_to_ycbcr(x, centered=False)
    z[:, 0] += 0.07
    torch.testing.assert_close(ycbcr_to_rgb(z, centered=False), x + 0.07)


def test_quantized_is_whole_levels_at_most_one_below() -> None:
    levels = 255 * rgb_to_ycbcr(LEVELS.double() / 255, centered=False, quantize=True)
    exact = 255 * rgb_to_ycbcr(LEVELS.double() / 255, centered=False)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    assert ((exact - levels) > -0.01).all()
    assert ((exact - levels) < 1).all()


@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb])
@pytest.mark.parametrize(
    "x", [torch.rand(2, 1, 4, 4), torch.rand(3, 4, 4), torch.rand(0, 3, 4, 4), torch.full((1, 3, 2, 2), torch.nan)]
)
def test_bad_input(convert, x: torch.Tensor) -> None:
    with pytest.raises(InputError):
        convert(x)
