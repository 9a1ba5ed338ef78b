"""Views: what they keep, what they change, and where their gradient goes."""

from __future__ import annotations

import pytest
import torch

from assay.represent import Augmentation
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, torch_rng

STILL = Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter=0.0, grayscale=0.0)
GREY = torch.tensor([0.299, 0.587, 0.114])


def images(n: int = 12, channels: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, 8, 10, generator=torch_rng(0, "images"))


def view(method: Augmentation, x: torch.Tensor, index: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
    return method(x, Draws(seed, "view", torch.arange(len(x)) if index is None else index))


def test_nothing_changes_where_nothing_may() -> None:
    torch.testing.assert_close(view(STILL, images()), images(), atol=1e-5, rtol=0)


def test_a_view_belongs_to_its_sample_and_not_to_the_batch() -> None:
    x, method = images(), Augmentation(noise=0.1, rotation=20)
    whole = view(method, x)
    assert whole.shape == x.shape
    torch.testing.assert_close(view(method, x[3:7], torch.arange(3, 7)), whole[3:7])
    assert not torch.allclose(view(method, x, seed=1), whole)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1


def test_flips_mirror_every_second_view() -> None:
    x = images(400)
    found = view(Augmentation(scale=(1.0, 1.0), ratio=1.0, jitter=0.0, grayscale=0.0), x)
    mirrored = (found - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    kept = (found - x).abs().amax((1, 2, 3)) < 1e-4
    assert (mirrored ^ kept).all()
    assert 0.4 < float(mirrored.double().mean()) < 0.6


def test_a_crop_of_a_ramp_keeps_the_share_of_its_area() -> None:
    ramp = torch.linspace(0, 1, 64).expand(300, 1, 64, 64).contiguous()
    method = Augmentation(scale=(0.25, 0.25), ratio=1.0, flip=False, jitter=0.0)
    found = view(method, ramp)
    spread = (found[:, 0, 30].amax(1) - found[:, 0, 30].amin(1)).mean()
    assert float(spread) == pytest.approx(0.5, abs=0.02)
    starts = found[:, 0, 30, 0]
    assert float(starts.min()) < 0.03
    assert 0.45 < float(starts.max()) < 0.52


def test_a_quarter_turn_moves_the_top_to_a_side() -> None:
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 0] = 1.0
    found = view(Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter=0.0, rotation=90), x)
    assert float(found[:, 0, 0, 4].mean()) < 0.9
    assert float(found.mean((1, 2, 3)).min()) > 0.05


def test_colour_without_and_with_hue() -> None:
    x = 0.3 + 0.4 * images()
    grey = view(Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter=0.0, grayscale=1.0), x)
    expected = (x * GREY[:, None, None]).sum(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(grey, expected, atol=1e-5, rtol=0)
    turned = view(
        Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter=1.0, strength=0.0, grayscale=0.0, hue=0.05), x
    )
    assert float((turned - x).abs().max()) > 0.01
    luma = [(z * GREY[:, None, None]).sum(1) for z in (turned, x)]
    torch.testing.assert_close(luma[0], luma[1], atol=3e-3, rtol=0)


def test_the_gradient_reaches_the_image() -> None:
    x = (0.3 + 0.4 * images(1)[:, :, :4, :4]).double().requires_grad_()
    method = Augmentation(rotation=15.0)
    assert torch.autograd.gradcheck(lambda z: view(method, z), (x,), atol=1e-5, nondet_tol=0.0)


@pytest.mark.parametrize(
    "bad",
    [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"jitter": 1.5}, {"hue": 0.6}, {"noise": -1.0}, {"ratio": 0.5}],
)
def test_bad_options(bad: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        Augmentation(**bad)


def test_bad_inputs() -> None:
    with pytest.raises(InputError, match="streams"):
        view(STILL, images(), torch.arange(3))
    with pytest.raises(InputError, match="n, c, h, w"):
        view(STILL, torch.rand(4, 8))
