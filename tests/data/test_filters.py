"""Filters against scipy, Pillow's own reading, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from assay.data.filters import gaussian_blur, jpeg, median, quantised
from assay.runtime.errors import InputError

X = torch.rand(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_median_is_scipys(size: int) -> None:
    expected = ndimage.median_filter(X.numpy(), size=(1, 1, size, size), mode="nearest")
    assert np.array_equal(median(X, size).numpy(), expected)


def test_an_even_median_lies_up_and_left_and_takes_the_lower_middle() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert median(x, 2)[0, 0].equal(torch.tensor([[1.0, 1.0], [1.0, 2.0]]))


def test_blur_keeps_constants_and_nears_scipys_gaussian() -> None:
    torch.testing.assert_close(gaussian_blur(torch.full((1, 1, 8, 8), 0.3), 1.5), torch.full((1, 1, 8, 8), 0.3))
    expected = ndimage.gaussian_filter(X.numpy(), (0, 0, 1.5, 1.5), mode="nearest", truncate=3.4)
    assert np.abs(gaussian_blur(X, 1.5).numpy() - expected).max() < 0.02


def test_quantised_has_so_many_levels_in_any_bounds() -> None:
    x = torch.linspace(-1, 1, 1001)
    assert len(quantised(x, 8, (-1.0, 1.0)).unique()) == 8
    torch.testing.assert_close(quantised(x, 2, (-1.0, 1.0)).abs(), torch.ones(1001))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_of_smooth_images_is_near_and_in_any_bounds(channels: int) -> None:
    ramp = torch.linspace(0, 1, 16).expand(2, channels, 16, 16)
    back = jpeg(ramp, 95)
    assert back.shape == ramp.shape
    assert float((back - ramp).abs().max()) < 0.05
    torch.testing.assert_close(jpeg(4 * ramp - 2, 95, (-2.0, 2.0)), 4 * back - 2, rtol=1e-5, atol=1e-5)


def test_bad_input() -> None:
    for call in (
        lambda: median(X[0], 3),
        lambda: median(X, 0),
        lambda: gaussian_blur(X, 0.0),
        lambda: jpeg(X, 0),
        lambda: quantised(X, 1),
    ):
        with pytest.raises(InputError):
            call()
