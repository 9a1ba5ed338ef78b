"""Corruptions: bounds, determinism, severity, and exact cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from assay.audit.corruption import FAMILIES, measure
from assay.audit.property import Context
from assay.data import Data, load_data
from assay.data.corruptions import CORRUPTIONS, SEVERITIES
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded
from assay.subject import Subject
from assay.training import Supervised

NAMES = sorted(CORRUPTIONS)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load_data("digits:test").x[:60]


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """Smooth colour images of 20x24."""
    g = torch.Generator().manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(24, 3, 5, 6, generator=g), (20, 24), mode="bilinear")


def draws(n: int, seed: int = 0, stream: str = "corruption") -> Draws:
    return Draws(seed, stream, torch.arange(n))


@pytest.mark.parametrize("name", NAMES)
def test_shape_bounds_and_input_unmodified(name: str, images: torch.Tensor) -> None:
    x = images * 4 - 2
    kept = x.clone()
    for severity in SEVERITIES:
        out = CORRUPTIONS[name].apply(x, severity, draws(len(x)), (-2.0, 2.0))
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert float(out.min()) >= -2
        assert float(out.max()) <= 2
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NAMES)
def test_severity_grows_on_average(name: str, images: torch.Tensor, photos: torch.Tensor) -> None:
    for x in (images, photos):
        moved = [
            float((CORRUPTIONS[name].apply(x, s, draws(len(x))) - x).flatten(1).norm(dim=1).mean()) for s in SEVERITIES
        ]
        assert moved[0] > 0
        assert all(a < b for a, b in itertools.pairwise(moved)), moved


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_and_independent_of_batch(name: str, photos: torch.Tensor) -> None:
    before = torch.get_rng_state()
    one = CORRUPTIONS[name].apply(photos, 3, draws(len(photos)))
    two = CORRUPTIONS[name].apply(photos, 3, draws(len(photos)))
    parts = [
        CORRUPTIONS[name].apply(photos[s : s + 5], 3, Draws(0, "corruption", torch.arange(s, min(s + 5, len(photos)))))
        for s in range(0, len(photos), 5)
    ]
    assert torch.equal(one, two)
    assert torch.allclose(one, torch.cat(parts), atol=1e-6)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(name: str, images: torch.Tensor) -> None:
    corruption = CORRUPTIONS[name]
    bad = images.clone()
    bad[0, 0, 0, 0] = float("nan")
    for x, severity, n in (
        (bad, 1, 60),
        (images.flatten(1), 1, 60),
        (images, 6, 60),
        (images, 0, 60),
        (images, 1, 59),
        (images + 1, 1, 60),
        (images[:0], 1, 0),
    ):
        with pytest.raises(InputError):
            corruption.apply(x, severity, draws(n))


def test_each_family_is_there() -> None:
    families = [c.family for c in CORRUPTIONS.values()]
    assert {f: families.count(f) for f in set(families)} == {
        "noise": 3, "blur": 3, "photometric": 3, "digital": 3, "geometric": 4,
    }  # fmt: skip
    assert all(name == c.name for name, c in CORRUPTIONS.items())


@pytest.mark.parametrize("name", [n for n in NAMES if CORRUPTIONS[n].family in ("blur", "geometric")] + ["pixelate"])
def test_constant_images_stay(name: str) -> None:
    x = torch.full((3, 1, 9, 9), 0.4)
    assert torch.allclose(CORRUPTIONS[name].apply(x, 5, draws(3)), x, atol=1e-5)


def test_translate_moves_by_its_fraction() -> None:
    """A blob far from the border: its centre of mass moves by 0.2 of the side."""
    side = 40
    place = torch.arange(side) - (side - 1) / 2
    blob = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / 8).expand(6, 1, side, side).clone()
    out = CORRUPTIONS["translate"].apply(blob, 5, draws(6))
    mass = out.sum((1, 2, 3))
    dx, dy = (out.sum((1, 2)) * place).sum(1) / mass, (out.sum((1, 3)) * place).sum(1) / mass
    assert torch.allclose(torch.hypot(dx, dy), torch.full((6,), 0.2 * side), atol=0.05)
    assert len({round(float(v), 2) for v in dx}) > 3


def test_rotation_keeps_lengths_on_oblong_images() -> None:
    """A point 10 to the right of the middle lands 10 away from it at the stated angle, whatever the aspect."""
    h, w = 41, 61
    yy, xx = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    blob = torch.exp(-(yy[:, None] ** 2 + (xx[None] - 10) ** 2) / 4).expand(4, 1, h, w).clone()
    out = CORRUPTIONS["rotate"].apply(blob, 5, draws(4))
    mass = out.sum((1, 2, 3))
    dx, dy = (out.sum((1, 2)) * xx).sum(1) / mass, (out.sum((1, 3)) * yy).sum(1) / mass
    assert torch.allclose(torch.hypot(dx, dy), torch.full((4,), 10.0), atol=0.05)
    assert torch.allclose(torch.rad2deg(torch.atan2(dy, dx)).abs(), torch.full((4,), 36.0), atol=0.3)


def test_shot_noise_is_poisson() -> None:
    """Mean and variance of the counts are Poisson's (clipping is rare at a rate of 3.5 of 14)."""
    x = torch.full((40, 1, 50, 50), 0.25)
    out = CORRUPTIONS["shot-noise"].apply(x, 3, draws(40)) * 14
    assert float(out.mean()) == pytest.approx(3.5, abs=0.03)
    assert float(out.var()) == pytest.approx(3.5, abs=0.06)


def test_gaussian_noise_has_its_sigma() -> None:
    out = CORRUPTIONS["gaussian-noise"].apply(torch.full((40, 1, 50, 50), 0.5), 1, draws(40))
    assert float(out.std()) == pytest.approx(0.06, rel=0.01)
    assert float(out.mean()) == pytest.approx(0.5, abs=1e-3)


def test_closed_forms(images: torch.Tensor) -> None:
    n = len(images)
    assert torch.allclose(CORRUPTIONS["brightness"].apply(images, 2, draws(n)), (images + 0.2).clamp(max=1))
    assert torch.allclose(CORRUPTIONS["gamma"].apply(images, 3, draws(n)), images**2)
    assert set(CORRUPTIONS["quantise"].apply(images, 5, draws(n)).unique().tolist()) == {0.0, 1.0}
    changed = CORRUPTIONS["impulse-noise"].apply(torch.full((40, 3, 50, 50), 0.5), 3, draws(40)) != 0.5
    assert float(changed.float().mean()) == pytest.approx(0.1, abs=0.004)
    assert torch.equal(changed[:, 0], changed[:, 2])


def test_the_property_counts_what_it_says() -> None:
    """The overall value is the mean of the families', sample by sample, and a repeated audit says the same."""
    with seeded(0, "init"):
        model: torch.nn.Module = MLP(hidden=(32,))
    model = Supervised(epochs=5).fit(model, load_data("digits:train"), seed=0)
    subject = Subject(model, load_data("digits:test"))
    section, again = measure(subject, Context(limit=60)), measure(subject, Context(limit=60))
    names = [m.name for m in section.metrics]
    assert names == ["corruption.accuracy", *(f"corruption.{f}.accuracy" for f in FAMILIES)]
    families = np.stack([section.samples[f"corruption.{f}.accuracy"].values[:, 0] for f in FAMILIES])
    assert np.allclose(section.samples["corruption.accuracy"].values[:, 0], families.mean(0))
    assert section.metrics[0].value == pytest.approx(families.mean())
    assert section.metrics == again.metrics
    assert len(section.samples["corruption.accuracy"].index) == 60
    lines = section.plots[0].series
    assert {v["x"][0] for v in lines.values()} == {0}
    assert all(v["y"][0] >= v["y"][-1] for v in lines.values())


def test_the_property_skips_what_is_no_image() -> None:
    data = Data(torch.rand(40, 9), torch.arange(40) % 3, tuple("abc"))
    section = measure(Subject(torch.nn.Linear(9, 3), data), Context())
    assert section.skipped is not None
    assert not section.metrics
