"""ManiF-SMC: the triplet loss is torch's, the curve is the Bezier curve, and the surrogate sees no erased sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP, ResNet
from assay.represent import mmcr_loss
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import ManiFSMC, Neighbourhoods, SelfModeConnectivity, manifold_triplet_loss


class Spy(nn.Module):
    """Keeps all that passes through any of its copies."""

    seen: list[Tensor] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        Spy.seen.append(x.detach().clone())
        return x


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train").limit(300), Supervised(epochs=50)
    with seeded(0, "test"):
        model = MLP(hidden=(24,))
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return subject.training("the test").split(0.1, seed=0)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1)


def test_indices_may_be_of_any_size(subject: Subject, parts: tuple[Data, Data]) -> None:
    far = [replace(d, index=d.index * 10**12 - 10**13) for d in (subject.training("the test"), *parts)]
    given, method = replace(subject, train=far[0]), ManiFSMC(margin=0.5, positive="nearest")
    assert same(method.forget(given, *far[1:], seed=0), method.forget(subject, *parts, seed=0))


def points(n: int = 12, d: int = 5) -> list[Tensor]:
    g = torch_rng(0, "points")
    return [torch.randn(n, d, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def test_the_loss_and_its_gradient_are_those_of_torch() -> None:
    c, p, e = points()
    ours = manifold_triplet_loss(c, p, e, 0.7)
    theirs = F.triplet_margin_with_distance_loss(c, p, e, margin=0.7, distance_function=square)
    assert torch.allclose(ours, theirs, rtol=1e-14)
    for a, b in zip(torch.autograd.grad(ours, (c, p, e)), torch.autograd.grad(theirs, (c, p, e)), strict=True):
        assert torch.allclose(a, b, rtol=1e-14)
    terms = square(p, c) - square(e, c) + torch.arange(12.0)
    assert torch.allclose(manifold_triplet_loss(c, p, e, torch.arange(12.0)), terms.clamp_min(0).mean())
    assert torch.allclose(manifold_triplet_loss(c, p, e, torch.arange(12.0), "batch"), terms.mean().clamp_min(0))
    assert manifold_triplet_loss(c, p, e, -torch.inf) == 0


def test_neighbours_are_the_nearest_by_cosine(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    found = Neighbourhoods.of(subject.model, forget, retain, k=4)
    z, held = (F.normalize(subject.model.body(d.x), dim=1).detach() for d in parts)  # type: ignore[operator]
    for i in range(len(forget)):
        order = (held @ z[i]).argsort(descending=True)[:4]
        assert set(found.positions[i].tolist()) == set(order.tolist())
        assert torch.equal(found.near.index[found.rows[i]], retain.index[found.positions[i]])
        near = held[order]
        assert torch.allclose(found.centres[i], near.mean(0), atol=1e-6)
        gap = square(z[i], near.mean(0)) - square(near, near.mean(0)).mean()
        assert found.gaps(subject.model)[i] == pytest.approx(float(gap), abs=1e-5)
    some = torch.tensor([3, 1])
    assert torch.allclose(found.gaps(subject.model, rows=some), found.gaps(subject.model)[some], atol=1e-6)
    raw = Neighbourhoods.of(subject.model, forget, retain, k=4, normalize=False)
    out = subject.model.body(retain.x).detach()  # type: ignore[operator]
    assert torch.equal(raw.positions, found.positions)
    assert torch.allclose(raw.centres, out[raw.positions].mean(1) / 24**0.5, atol=1e-5)


def test_class_geometry_and_other_classes(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    guess, held = (subject.model(d.x).argmax(1) for d in parts)
    whole = Neighbourhoods.of(subject.model, forget, retain, k=3, geometry="class")
    assert (held[whole.positions] == guess[:, None]).all()
    z = F.normalize(subject.model.body(retain.x), dim=1).detach()  # type: ignore[operator]
    assert torch.allclose(whole.centres[0], z[held == guess[0]].mean(0), atol=1e-6)
    across = Neighbourhoods.of(subject.model, forget, retain, k=3, across=True)
    assert (held[across.positions] != guess[:, None]).all()


def test_the_curve_is_bezier_and_moves_no_end(subject: Subject) -> None:
    train = subject.training("the test")
    with seeded(1, "other"):
        other, control = MLP(hidden=(24,)), MLP(hidden=(24,))
    kept = {k: v.clone() for k, v in other.state_dict().items()}
    curve = SelfModeConnectivity(steps=60).fit(subject.model, other, train, seed=0, control=control)
    assert same(curve.at(0), subject.model)
    assert same(curve.at(1), other)
    assert all(torch.equal(kept[k], v) for k, v in other.state_dict().items())
    assert not same(curve.control_, control)
    triples = zip(curve.at(0.25).parameters(), subject.model.parameters(), curve.control_.parameters(), strict=True)
    for (m, a, w), b in zip(triples, other.parameters(), strict=True):
        assert torch.allclose(m, 9 / 16 * a + 6 / 16 * w + 1 / 16 * b, atol=1e-7)
    untrained = SelfModeConnectivity(steps=0).fit(subject.model, other, train, seed=0, control=control)
    assert same(untrained.control_, control)
    ends, middle, before = curve.loss_along([0.0, 1.0]), curve.loss_along([0.5])[0], untrained.loss_along([0.5])[0]
    assert middle < before
    assert len(ends) == 2
    for loss in ("labels", "mmcr"):
        bent = SelfModeConnectivity(steps=3, loss=loss).fit(subject.model, other, train, seed=0, control=control)
        assert not same(bent.control_, curve.control_)


def test_batch_norm_of_the_middle_is_taken_anew() -> None:
    data = load_data("digits:train").limit(60)
    with seeded(0, "norm"):
        a, b = ResNet((1, 8, 8), 10, 4, (1,)), ResNet((1, 8, 8), 10, 4, (1,))
    middle = SelfModeConnectivity(steps=2, batch_size=20).fit(a, b, data, seed=0).at(0.5)
    stem = middle.get_submodule("stem")
    maps = stem[0](data.x)  # type: ignore[index]
    assert torch.allclose(stem[1].running_mean, maps.mean((0, 2, 3)), atol=1e-6)  # type: ignore[index]
    assert not middle.training


def test_batch_norm_of_the_random_surrogate_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = load_data("digits:train").limit(60), list[nn.Module]()
    with seeded(0, "norm"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    subject = Subject(model, data, data)
    gaps = Neighbourhoods.gaps

    def spied(around: Neighbourhoods, model: nn.Module, **options: Any) -> Tensor:
        seen.append(model)
        return gaps(around, model, **options)

    monkeypatch.setattr(Neighbourhoods, "gaps", spied)
    method = ManiFSMC(surrogate="random_linear", k=3)
    method.fit(subject, data[:5], data[5:], seed=0)
    near = method.neighbourhoods(model, data[:5], data[5:], 0).near.x
    with torch.no_grad():
        read = seen[0][:2](near)  # type: ignore[index]
    assert torch.allclose(seen[0][2].running_mean, read.mean(0), atol=1e-6)  # type: ignore[index]
    with pytest.raises(InputError, match="one value a channel"):
        replace(method, k=1).fit(subject, data[:1], data[1:], seed=0)
    with pytest.raises(InputError, match="one value a channel"):
        ManiFSMC(k=1, smc_steps=1).fit(subject, data[:1], data[1:], seed=0)


def test_the_surrogate_sees_no_erased_sample(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    model = nn.Sequential(Spy(), subject.model)
    method = ManiFSMC(smc_steps=5)
    around = method.neighbourhoods(model, forget, retain, 0)
    Spy.seen.clear()
    method.curve().fit(model, model, around.near, seed=0).at(0.5)
    seen = torch.cat([x.flatten(1) for x in Spy.seen])
    assert len(seen) > 60
    assert torch.cdist(seen, forget.x.flatten(1)).min() > 1e-3
    assert torch.cdist(seen, around.near.x.flatten(1)).min(1).values.max() < 1e-3


def test_labels_and_satisfied_hinges_change_nothing(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    method = ManiFSMC(smc_steps=5, lr=5e-3)
    fitted = method.fit(subject, forget, retain, seed=3)
    other = method.forget(subject, forget.with_y(forget.y.roll(1)), retain.with_y(retain.y.roll(1)), seed=3)
    assert same(fitted.model, other)
    assert not same(fitted.model, subject.model)
    assert same(ManiFSMC(margin=float("-inf")).forget(subject, forget, retain, seed=3), subject.model)
    assert same(fitted.model.get_submodule("head"), subject.model.get_submodule("head"))
    assert fitted.margins_.shape == fitted.gaps_before_.shape == (len(forget),)
    assert torch.isfinite(fitted.margins_).all()


def test_a_margin_moves_the_erased_off(subject: Subject, parts: tuple[Data, Data]) -> None:
    plain = ManiFSMC(margin=0.3, lr=5e-3, epochs=6)
    fitted = plain.fit(subject, *parts, seed=0)
    assert fitted.gaps_after_.mean() > fitted.gaps_before_.mean() + 1e-3
    looked_up = replace(plain, margin=lambda index: torch.full((len(index),), 0.3))
    assert same(looked_up.forget(subject, *parts, seed=0), fitted.model)


@pytest.mark.parametrize(
    "options",
    [
        {"surrogate": "random_linear"},
        {"center": "reference"},
        {"positive": "nearest"},
        {"normalize": False},
        {"hinge": "batch"},
        {"geometry": "class", "k": 2},
        {"across": True},
        {"t": 0.9},
    ],
)
def test_each_option_matters(options: dict[str, Any], subject: Subject, parts: tuple[Data, Data]) -> None:
    method = ManiFSMC(smc_steps=3, lr=2e-3)
    first, plain = (m.fit(subject, *parts, seed=0) for m in (replace(method, **options), method))
    assert torch.isfinite(first.margins_).all()
    # A margin matters only where it decides whether a hinge is satisfied.
    assert not (same(first.model, plain.model) and torch.equal(first.margins_, plain.margins_))


def test_mmcr_of_known_matrices() -> None:
    eye = torch.eye(4)
    assert mmcr_loss(torch.stack((eye, eye), 1)) == pytest.approx(-4)
    assert mmcr_loss(torch.stack((eye, -eye), 1)) == pytest.approx(0)
    assert mmcr_loss(3 * torch.ones(9, 2, 1)) == pytest.approx(-3)
    with pytest.raises(InputError, match="expected finite"):
        mmcr_loss(eye)


def test_bad_input(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    late: list[tuple[dict[str, Any], str]] = [
        ({"k": len(retain) + 1}, "retained samples to choose from"),
        ({"feature": "no such"}, "no layer"),
    ]
    for options, message in late:
        with pytest.raises(InputError, match=message):
            ManiFSMC(**options).forget(subject, forget, retain, seed=0)
    early: list[tuple[dict[str, Any], str]] = [
        ({"t": 1.5}, "0 <= t <= 1"),
        ({"surrogate": "linear"}, "surrogate"),
        ({"margin": "auto"}, "expected 'smc'"),
        ({"k": 0}, "k >= 1"),
    ]
    for options, message in early:
        with pytest.raises(InputError, match=message):
            ManiFSMC(**options)
    c, p, e = points()
    with pytest.raises(InputError, match="NaN"):
        manifold_triplet_loss(c, p, e, torch.full((12,), torch.nan))
    with pytest.raises(InputError, match="of one"):
        manifold_triplet_loss(c, p[:3], e, 0.1)
    with pytest.raises(InputError, match="one architecture"):
        SelfModeConnectivity().fit(subject.model, MLP(hidden=(8,)), retain, seed=0)
