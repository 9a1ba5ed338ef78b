"""Every exported generator keeps the contract of its kind."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from assay.data import Data, load_data
from assay.generate import FittedGenerator, Generator, frechet_distance
from assay.methods import exported
from assay.runtime.errors import InputError

METHODS = list(exported("generator").values())
generators = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
SHORT, LONG = {"steps": 60, "epochs": 1}, {"steps": 900, "epochs": 20}


def made(cls: type[Generator], budget: dict[str, int]) -> Generator:
    """The method with its own defaults, of the budget that it has a field for."""
    return cls(**{f.name: budget[f.name] for f in fields(cls) if f.name in budget})


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module", params=METHODS, ids=lambda c: c.__name__)
def fitted(request: pytest.FixtureRequest, data: Data) -> FittedGenerator:
    return made(request.param, LONG).fit(data, seed=0)


def test_the_room_exports_generators() -> None:
    assert "PFGMPP" in {c.__name__ for c in METHODS}
    assert all(issubclass(c, Generator) for c in METHODS)


def test_samples_have_the_shape_and_the_bounds_of_the_data(fitted: FittedGenerator, data: Data) -> None:
    x = fitted.sample(7, seed=0)
    assert x.shape == (7, *data.shape)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert data.bounds[0] <= float(x.min()) <= float(x.max()) <= data.bounds[1]
    assert len(x.flatten(1).unique(dim=0)) == 7


def test_a_seed_fixes_the_samples_and_the_global_generator_plays_no_part(fitted: FittedGenerator) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fitted.sample(5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(fitted.sample(5, seed=3), first)
    assert not torch.equal(fitted.sample(5, seed=4), first)


def test_independent_of_batch_size(fitted: FittedGenerator) -> None:
    if not hasattr(fitted, "batch_size"):
        pytest.skip("draws all samples at once")
    usual, whole = fitted.batch_size, fitted.sample(9, seed=0)
    try:
        for size in (1, 4):
            fitted.batch_size = size
            torch.testing.assert_close(fitted.sample(9, seed=0), whole, rtol=0, atol=1e-3)
    finally:
        fitted.batch_size = usual


@generators
def test_fitting_is_deterministic_and_leaves_data_and_global_randomness_alone(cls: type[Generator], data: Data) -> None:
    small = data.limit(100)
    x, y, options = small.x.clone(), small.y.clone(), repr(made(cls, SHORT))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    method = made(cls, SHORT)
    first = method.fit(small, seed=0).sample(4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(method.fit(small, seed=0).sample(4, seed=0), first)
    assert not torch.equal(method.fit(small, seed=1).sample(4, seed=0), first)
    assert torch.equal(small.x, x)
    assert torch.equal(small.y, y)
    assert repr(method) == options


def test_floor_nearer_to_held_out_data_than_independent_pixels(fitted: FittedGenerator, data: Data) -> None:
    """Right pixel by pixel is a toy: a generator has to get their dependence as well."""
    held = load_data("digits:test").x.flatten(1)
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(len(data), (400, held.shape[1]), generator=g)
    toy = frechet_distance(data.x.flatten(1).gather(0, rows), held)
    found = frechet_distance(fitted.sample(400, seed=0).flatten(1), held)
    assert found < 0.35 * toy, (found, toy)


def test_samples_are_no_copies_of_the_training_data(fitted: FittedGenerator, data: Data) -> None:
    nearest = torch.cdist(fitted.sample(50, seed=0).flatten(1), data.x.flatten(1)).min(1).values
    assert float(nearest.median()) > 1e-3


def test_bad_counts(fitted: FittedGenerator) -> None:
    for n in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="whole number"):
            fitted.sample(n, seed=0)


@generators
def test_bad_data(cls: type[Generator], data: Data) -> None:
    for value, message in ((2.0, "spans"), (float("nan"), "NaN")):
        outside, x = data[:4], data.x[:4].clone()
        x[0, 0, 0, 0] = value
        object.__setattr__(outside, "x", x)
        with pytest.raises(InputError, match=message):
            made(cls, SHORT).fit(outside, seed=0)
