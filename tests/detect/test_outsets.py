"""Out-of-distribution sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from assay.data import Data, load_data
from assay.data.outsets import OUT_SETS, photo_patches, pixel_shuffled
from assay.runtime.errors import InputError


def like(*shape: int, bounds: tuple[float, float] = (-1.0, 2.0), n: int = 12) -> Data:
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) * (bounds[1] - bounds[0]) + bounds[0]
    return Data(x, torch.arange(n) % 2, ("a", "b"), bounds, index=torch.arange(n) * 7)


@pytest.mark.parametrize("name", sorted(OUT_SETS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_shape_bounds_and_seed(name: str, shape: tuple[int, ...]) -> None:
    data, make, state = like(*shape), OUT_SETS[name], torch.get_rng_state()
    out = make(data, 9, seed=4)
    assert out.shape == (9, *shape)
    assert out.dtype == torch.float32
    assert out.min() >= -1
    assert out.max() <= 2
    assert out.equal(make(data, 9, seed=4))
    assert not out.equal(make(data, 9, seed=5))
    assert out[:5].equal(make(data, 5, seed=4))
    assert make(data, seed=4).shape == data.x.shape
    assert state.equal(torch.get_rng_state())
    with pytest.raises(InputError, match="expected"):
        make(data, 0)


def test_colour_patches_lie_in_the_photographs() -> None:
    data = like(3, 5, 6, bounds=(0.0, 1.0))
    photos = np.stack(load_sample_images().images)
    for patch in photo_patches(data, 6, seed=0):
        pixels = (patch * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)
        places = np.argwhere((photos == pixels[0, 0]).all(3))
        assert any(
            np.array_equal(photos[k, r : r + 5, c : c + 6], pixels)
            for k, r, c in places
            if r + 5 <= photos.shape[1] and c + 6 <= photos.shape[2]
        )


def test_patches_come_from_both_photographs_and_are_not_alike() -> None:
    patches = photo_patches(like(1, 8, 8), 200, seed=0).flatten(1)
    assert len(patches.unique(dim=0)) > 150
    assert patches.std() > 0.3


def test_photographs_need_images() -> None:
    for shape in ((5,), (2, 8, 8), (1, 500, 8)):
        with pytest.raises(InputError, match="photo patches"):
            photo_patches(like(*shape))


def test_shuffling_permutes_each_sample_its_own_way() -> None:
    data = load_data("digits:test")[:50]
    out = pixel_shuffled(data, seed=1)
    assert out.flatten(1).sort(1).values.equal(data.x.flatten(1).sort(1).values)
    assert not out.equal(data.x)
    rows = torch.tensor([30, 4])
    assert pixel_shuffled(data[rows], seed=1).equal(out[rows])
    ramp = data.with_x(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1))
    assert len(pixel_shuffled(ramp, seed=1).flatten(1).unique(dim=0)) == 50


def test_channels_of_a_pixel_stay_together() -> None:
    data = like(3, 4, 4)
    data = data.with_x(data.x[:, :1].repeat(1, 3, 1, 1))
    out = pixel_shuffled(data, seed=0)
    assert out[:, 0].equal(out[:, 1])
    assert out[:, 0].equal(out[:, 2])
    flat = like(6)
    assert pixel_shuffled(flat).sort(1).values.equal(flat.x.sort(1).values)
