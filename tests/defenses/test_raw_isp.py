"""The purifier over RAW: sizes of its networks, its noise, its two branches, and what it is trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.data import Data
from assay.data.isp import SimpleISP, UnprocessISP
from assay.defenses import LearnedISP, Purified, RawDefense, RawDefenseMap, RGBToRawNet, edge_error, image_noise
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded


def images(n: int = 6, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def natural(n: int = 24, **fields: Tensor) -> Data:
    return Data(images(n), torch.arange(n) % 2, ("a", "b"), fields=fields)


def purifier(weight: float = 0.7, scale: int = 1, **options: Any) -> RawDefenseMap:
    with seeded(0, "nets"):
        to_raw, to_rgb = RGBToRawNet(12, scale), LearnedISP(6, scale)
    return RawDefenseMap(to_raw, to_rgb, SimpleISP(scale=scale), weight, **options).eval()


@pytest.mark.parametrize("scale", [1, 2])
def test_sizes_of_the_networks(scale: int) -> None:
    weights = sum(p.numel() for p in RGBToRawNet().parameters())
    assert weights == 3 * 64 * 9 + 64 + 3 * (64 * 64 * 9 + 64) + 64 * 4 * 9 + 4 == 114_884
    with torch.no_grad():
        raw = RGBToRawNet(8, scale)(images(height=12))
    assert raw.shape == (6, 4, 12 // scale, 8 // scale)
    assert float(raw.min()) >= 0
    assert LearnedISP(4, scale)(raw).shape == (6, 3, 12, 8)


def test_no_channel_of_the_raw_is_born_dead() -> None:
    for seed in range(5):
        with seeded(seed, "net"):
            raw = RGBToRawNet(16)(images(20))
        assert ((raw > 0).float().mean((0, 2, 3)) > 0.5).all()


def test_the_level_of_the_noise_differs_between_images() -> None:
    draws = Draws(0, "noise", torch.arange(40_000))
    noise = image_noise(draws, (3, 4, 4))
    level = noise.std((1, 2, 3))
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=1e-3)
    assert float(level.mean()) == pytest.approx(0.1 * (2 / torch.pi) ** 0.5, rel=0.03)  # the mean of |s| 0.1
    assert float(level.quantile(0.1)) < 0.02 < 0.15 < float(level.quantile(0.9))


def test_slopes_of_a_ramp() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # slopes of 1, 2 and 4 along one axis as the size is halved
    assert float(edge_error(ramp, torch.zeros_like(ramp))) == pytest.approx(1 + 4 + 16)
    assert float(edge_error(ramp, ramp + 3)) == 0


@pytest.mark.parametrize("scale", [1, 2])
def test_weights_of_one_and_zero_are_one_branch(scale: int) -> None:
    x = images()
    mixed, learned, plain = (purifier(w, scale)(x) for w in (0.7, 1.0, 0.0))
    raw = purifier(scale=scale).to_raw(x)
    assert learned.equal(purifier(scale=scale).to_rgb(raw))
    assert plain.equal(SimpleISP(scale=scale)(raw))
    torch.testing.assert_close(mixed, 0.7 * learned + 0.3 * plain)


@pytest.mark.parametrize("scale", [1, 2])
def test_grey_images_of_odd_size_and_other_bounds(scale: int) -> None:
    x = images(channels=1, height=9, width=7)
    found = purifier(scale=scale)(x)
    assert found.shape == x.shape
    wide = purifier(scale=scale, bounds=(-1.0, 1.0))(2 * x - 1)
    torch.testing.assert_close(wide, 2 * found - 1)
    colour = purifier(scale=scale)(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, colour.mean(1, keepdim=True))


@pytest.mark.parametrize("scale", [1, 2])
def test_slopes_of_the_plain_pipeline_or_of_luminance(scale: int) -> None:
    x = images().requires_grad_()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    slopes = {}
    for bpda in (False, True):
        guarded = Purified(purifier(0.0, scale, bpda=bpda), model)
        logits = guarded(x)
        torch.testing.assert_close(logits, model(purifier(0.0, scale)(x)))
        (slopes[bpda],) = torch.autograd.grad(logits[:, 0].sum(), x)
    raw = purifier(0.0, scale).to_raw(x)
    light = torch.nn.functional.interpolate(raw.mean(1, keepdim=True), scale_factor=scale).expand(-1, 3, -1, -1)
    (expected,) = torch.autograd.grad(model(light)[:, 0].sum(), x)
    torch.testing.assert_close(slopes[True], expected)
    assert not slopes[False].allclose(slopes[True])


def test_pairs_are_captured_or_given() -> None:
    data = natural()
    found = RawDefense().pairs(data).fields["raw"]
    torch.testing.assert_close(found, UnprocessISP().capture(data.x))
    assert RawDefense(isp=SimpleISP(scale=2)).pairs(data).fields["raw"].shape == (24, 4, 4, 4)
    given = torch.rand(24, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert RawDefense().pairs(natural(raw=given)).fields["raw"].equal(given)
    random = RawDefense(camera=UnprocessISP(seed=3))
    assert random.pairs(data[5:]).fields["raw"].equal(random.pairs(data).fields["raw"][5:])


def test_training_brings_the_networks_to_their_targets() -> None:
    i = torch.linspace(0, 1, 8)
    tint = images(48, 3, 1, 1)
    data = Data(tint * (0.3 + 0.7 * i[:, None] * i), torch.arange(48) % 2, ("a", "b"))
    method = RawDefense(width=12, isp_width=8, epochs=16, batch_size=6, lr=5e-3)
    pairs = method.pairs(data)
    found = method.fit(data, seed=0)
    assert isinstance(found, RawDefenseMap)
    with torch.no_grad():
        raw = found.to_raw(data.x)
        shown = found.to_rgb(pairs.fields["raw"])
    assert float((raw - pairs.fields["raw"]).square().mean()) < 0.4 * float(pairs.fields["raw"].var())
    assert float((shown - data.x).square().mean()) < 0.4 * float(data.x.var())


def test_options_of_the_training_change_what_they_name() -> None:
    data, x = natural(), images()
    raw = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = RawDefense(width=6, isp_width=4, epochs=1)
    known = plain.fit(data, seed=0)
    for changed, of_f in ((replace(plain, raw_noise=0.01), False), (replace(plain, cycle=1.0), False),
                          (replace(plain, edges=0.0), False), (replace(plain, noise=0.0), True)):  # fmt: skip
        found = changed.fit(data, seed=0)
        assert isinstance(known, RawDefenseMap)
        assert isinstance(found, RawDefenseMap)
        assert known.to_raw(x).equal(found.to_raw(x)) is not of_f
        assert known.to_rgb(raw).equal(found.to_rgb(raw)) is of_f


def test_bad_input() -> None:
    two = Data(images(channels=2), torch.arange(6) % 2, ("a", "b"))
    dark = Data(images() - 0.5, torch.arange(6) % 2, ("a", "b"), bounds=(-1.0, 1.0)).x
    for call in (
        lambda: RawDefense(weight=1.5),
        lambda: RawDefense(noise=-0.1),
        lambda: RawDefense().fit(two, seed=0),
        lambda: RawDefense().fit(natural(raw=torch.zeros(24, 4, 3, 3)), seed=0),
        lambda: Data(dark, torch.arange(6) % 2, ("a", "b")),
        lambda: purifier(weight=-0.1),
    ):
        with pytest.raises(InputError):
            call()
