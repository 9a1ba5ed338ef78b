"""Triggers and poisoned data against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from assay.attacks import badnets, blended, poison, sinusoidal, stamp, wanet_like
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

TRIGGERS = (badnets, blended, sinusoidal, wanet_like)
every = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda f: f.__name__)


def images(n: int = 12, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch_rng(0, "images"))


@every
def test_triggers_keep_shape_bounds_and_input_and_treat_images_one_by_one(trigger) -> None:
    x = images()
    kept, state = x.clone(), torch.get_rng_state()
    marked = trigger(x)
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())
    assert marked.shape == x.shape
    assert marked.dtype == x.dtype
    assert 0 <= float(marked.min()) <= float(marked.max()) <= 1
    assert not torch.equal(marked, x)
    torch.testing.assert_close(trigger(x[3:5]), marked[3:5])
    for bad, words in ((x.flatten(1), "images"), (x[:0], "n >= 1"), (x * torch.nan, "finite")):
        with pytest.raises(InputError, match=words):
            trigger(bad)


def test_badnets_is_the_square_in_the_corner() -> None:
    x = images()
    changed = (badnets(x) != x).any(1)
    assert torch.equal(badnets(x), stamp(x, "square"))
    assert changed[:, -2:, -2:].sum() >= 4 * len(x) - 12
    assert not changed[:, :-2].any()


def test_blended_is_a_convex_mixture_with_one_image() -> None:
    x = images()
    key = (blended(x, alpha=0.3) - 0.7 * x) / 0.3
    torch.testing.assert_close(key, key[:1].expand_as(key), atol=1e-5, rtol=0)
    torch.testing.assert_close(blended(x, alpha=1.0)[0], key[0], atol=1e-5, rtol=0)
    assert torch.equal(blended(x, alpha=0.0), x)
    assert not torch.equal(blended(x, seed=1), blended(x, seed=2))
    wide = blended(200 * x - 100, alpha=1.0, bounds=(-100.0, 100.0))
    assert wide.min() < -90
    assert wide.max() > 90
    with pytest.raises(InputError, match="alpha"):
        blended(x, alpha=1.5)


def test_sinusoidal_is_its_formula() -> None:
    x = images()
    column = 0.2 * np.sin(2 * np.pi * np.arange(16) * 3 / 16)
    expected = np.clip(x.numpy() + column, 0, 1)
    np.testing.assert_allclose(sinusoidal(x, amplitude=0.2, frequency=3), expected, atol=1e-6)


def test_the_warp_reads_pixels_where_its_field_says() -> None:
    x, side = images(2, 1), 16
    ramp = torch.linspace(0, 1, side)
    rows, columns = ramp[:, None].expand(side, side), ramp.expand(side, side)
    places = wanet_like(torch.stack((rows, columns))[:, None], strength=2.0, seed=4)[:, 0].double().numpy()
    expected = map_coordinates(x[1, 0].double().numpy(), places * (side - 1), order=1)
    np.testing.assert_allclose(wanet_like(x, strength=2.0, seed=4)[1, 0], expected, atol=1e-5)
    assert 0 < np.abs(places[0] - rows.numpy()).max() * (side - 1) < 6
    torch.testing.assert_close(wanet_like(x, strength=0.0), x)
    for wrong in ({"grid": 1}, {"strength": -1.0}):
        with pytest.raises(InputError, match="wanet_like"):
            wanet_like(x, **wrong)


def test_poison_marks_the_stated_share_of_the_other_classes() -> None:
    x, y = images(200), torch.arange(200) % 10
    kept = x.clone(), y.clone()
    marked, labels, mask = poison(x, y, badnets, 3, 0.1, seed=5)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert int(mask.sum()) == 20
    assert not (y[mask] == 3).any()
    assert (labels[mask] == 3).all()
    assert torch.equal(marked[mask], badnets(x[mask]))
    assert torch.equal(marked[~mask], x[~mask])
    assert torch.equal(labels[~mask], y[~mask])
    assert torch.equal(poison(x, y, badnets, 3, 0.1, seed=5)[2], mask)
    assert not torch.equal(poison(x, y, badnets, 3, 0.1, seed=6)[2], mask)
    assert not poison(x, y, badnets, 3, 0.0, seed=5)[2].any()
    assert poison(x, y, badnets, 3, 0.9, seed=5)[2].equal(y != 3)


def test_poison_refuses_what_it_cannot_do() -> None:
    x, y = images(20), torch.arange(20) % 10
    for rate, target in ((0.95, 3), (-0.1, 3), (0.1, -1)):
        with pytest.raises(InputError, match="rate"):
            poison(x, y, badnets, target, rate, seed=0)
    with pytest.raises(InputError, match="trigger gives"):
        poison(x, y, lambda z: z[:, :1], 3, 0.1, seed=0)
