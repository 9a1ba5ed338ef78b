"""The contract of trainers that also learn without labels, over every exported one."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch import nn

import assay.labels as room
from assay.data import Data, load_data
from assay.labels import Cutout
from assay.labels.semi_supervised import TRUTH, SemiSupervised
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded

METHODS = [m for m in (getattr(room, n) for n in room.__all__) if inspect.isclass(m) and issubclass(m, SemiSupervised)]
methods = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


@pytest.fixture(scope="module")
def parts() -> tuple[Data, Data]:
    """Sixty labelled digits and three hundred others without labels."""
    data = load_data("digits:train").limit(360)
    return data[:60], data[60:]


def network() -> nn.Module:
    """With batch norm: at low thresholds, which let every early prediction in, one without it may stay at one class."""
    with seeded(0, "test"):
        body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(),
        )  # fmt: skip
        return nn.Sequential(OrderedDict(body=body, head=nn.Linear(32, 10)))


def made(cls: type[SemiSupervised], steps: int = 3, **options: object) -> SemiSupervised:
    small = {"steps": steps, "batch_size": 30, "mu": 2, **options}
    if "strong" in {f.name for f in fields(cls)}:
        small = {"strong": Cutout(share=0.3), **small}
    return cls(**small)  # type: ignore[arg-type]


def state_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([v.double().flatten() for v in model.state_dict().values()])


def test_the_baselines_are_among_them() -> None:
    assert {"FixMatch", "FlexMatch", "FreeMatch", "MixMatch", "ShrinkMatch"} <= {c.__name__ for c in METHODS}


@methods
def test_labels_of_the_unlabelled_are_not_read(cls: type[SemiSupervised], parts: tuple[Data, Data]) -> None:
    labelled, pool = parts
    fit = partial(made(cls).fit, network(), labelled, seed=0)
    first = state_of(fit(unlabelled=pool))
    assert torch.equal(first, state_of(fit(unlabelled=pool.with_y(torch.zeros_like(pool.y)))))
    assert torch.equal(first, state_of(fit(unlabelled=replace(pool, fields={TRUTH: pool.y}))))
    assert not torch.equal(first, state_of(fit(unlabelled=pool.with_x(pool.x.flip(0)))))
    assert not torch.equal(first, state_of(fit()))


@methods
def test_leaves_what_it_is_given(cls: type[SemiSupervised], parts: tuple[Data, Data]) -> None:
    labelled, pool = parts
    model = network()
    before, hashes, state = state_of(model), (labelled.hash, pool.hash), torch.get_rng_state()
    trained = made(cls).fit(model, labelled, seed=0, unlabelled=pool)
    assert torch.equal(before, state_of(model))
    assert model.training
    assert hashes == (labelled.hash, pool.hash)
    assert torch.equal(state, torch.get_rng_state())
    assert type(trained) is type(model)
    assert [k for k, _ in trained.named_modules()] == [k for k, _ in model.named_modules()]
    assert not trained.training


@methods
def test_seed(cls: type[SemiSupervised], parts: tuple[Data, Data]) -> None:
    labelled, pool = parts
    first, again, other = (state_of(made(cls).fit(network(), labelled, seed=s, unlabelled=pool)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@methods
def test_learns_from_few_labels(cls: type[SemiSupervised], parts: tuple[Data, Data]) -> None:
    labelled, pool = parts
    test = load_data("digits:test")
    model = made(cls, steps=80, lr=5e-3).fit(network(), labelled, seed=0, unlabelled=pool)
    # Chance is 0.1.
    assert (predict(model, test.x).argmax(1) == test.y).float().mean() > 0.4


@methods
def test_fewer_unlabelled_than_a_batch(cls: type[SemiSupervised], parts: tuple[Data, Data]) -> None:
    labelled, pool = parts
    few = state_of(made(cls).fit(network(), labelled, seed=0, unlabelled=pool[:5]))
    assert torch.isfinite(few).all()
    assert not torch.equal(few, state_of(made(cls).fit(network(), labelled, seed=0, unlabelled=pool[5:10])))


@methods
def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    cls: type[SemiSupervised], parts: tuple[Data, Data], tmp_path: object
) -> None:
    labelled, pool = parts

    class Stop(Exception):
        pass

    def stop(models: object, state: object) -> None:
        if state.step == 5:  # type: ignore[attr-defined]
            raise Stop

    fit = partial(made(cls, steps=6).fit, network(), labelled, seed=0, unlabelled=pool)
    path = tmp_path / "state"  # type: ignore[operator]
    with pytest.raises(Stop):
        fit(checkpoint=path, hooks=[stop])
    assert torch.equal(state_of(fit(checkpoint=path)), state_of(fit()))


@methods
def test_bad_input(cls: type[SemiSupervised], parts: tuple[Data, Data]) -> None:
    labelled, pool = parts
    fit = partial(made(cls).fit, network(), labelled, seed=0)
    with pytest.raises(InputError, match="unlabelled"):
        fit(unlabelled=pool[:1])
    with pytest.raises(InputError, match="unlabelled"):
        fit(unlabelled=pool.with_x(pool.x[:, :, :6]))
    with pytest.raises(InputError, match="mu"):
        cls(mu=0)
