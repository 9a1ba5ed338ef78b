"""The model that refuses, and the attack on it, against cases whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks import Linf, Targeted, Untargeted
from assay.data import Data
from assay.detect import BEYOND, MSP, BeyondAdaptiveAttack, ConformalDetector, DetectorAwarePGD
from assay.detect.base import FittedDetector
from assay.detect.beyond import FittedBEYOND
from assay.detect.guarded import Guarded, Unnoticed, evade, has_gradient
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import seeded


@dataclass(kw_only=True)
class Height(FittedDetector):
    """Flags inputs whose second number is far from one half."""

    def scores(self, x: Tensor) -> Tensor:
        return (x[:, 1] - 0.5).abs().double()

    def graph(self, x: Tensor) -> Tensor:
        return (x[:, 1] - 0.5).abs().double()


class Blind(Height):
    graph = FittedDetector.graph


def half_plane(weights: tuple[float, float]) -> nn.Linear:
    """Class 1 where w x is above w (0.5, 0.5)."""
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1] = 20 * torch.tensor(weights)
        head.bias.copy_(torch.tensor([10 * sum(weights), 0.0]))
    return head


def fitted(cls: type[FittedDetector], model: nn.Module, limit: float) -> FittedDetector:
    """A detector whose threshold at 5% is ``limit``."""
    return cls(model=model, shape=(2,), bounds=(0.0, 1.0), reference_=np.linspace(limit - 0.95, limit + 0.05, 101))


@pytest.fixture
def points() -> Data:
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + torch.tensor([0.1, 0.35])
    return Data(x, torch.zeros(200, dtype=torch.int64), ("left", "right"))


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 10.0]))
def test_the_margin_is_positive_where_a_wrong_class_is_let_through(seed: int, weight: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(50, 5, generator=g), torch.randint(4, (50,), generator=g)
    goal, decision = Unnoticed(y), logits.argmax(1)
    assert goal.met(logits).equal((decision != y) & (decision != 4))
    assert goal.met(logits).equal(goal.margin(logits) > 0)


def test_decisions_alone_are_not_enough() -> None:
    with pytest.raises(AccessError, match="SCORE"):
        Unnoticed(torch.zeros(3, dtype=torch.int64)).met(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_what_is_above_the_threshold_is_refused_and_the_rest_is_left_alone(points: Data, weight: float) -> None:
    model = half_plane((1.0, 0.0))
    detector = fitted(Height, model, 0.1)
    out = Guarded(model, detector, weight=weight)(points.x)
    flagged = detector.score(points.x) > detector.threshold(0.05)
    assert 20 < int(flagged.sum()) < 180
    assert (out.argmax(1) == 2).equal(flagged)
    assert out[:, :2].equal(model(points.x))


def test_a_detector_that_looks_elsewhere_does_not_stop_the_attack(points: Data) -> None:
    # The first number decides the class, the second the alarm: every input within reach of both is fooled, no other.
    model = half_plane((1.0, 0.0))
    detector = fitted(Height, model, 0.1)
    found = evade(model, detector, points, Linf(0.2), seed=0)
    reachable = (points.x[:, 0] + 0.2 > 0.5) & ((points.x[:, 1] - 0.5).abs() - 0.2 < 0.1)
    assert float((found.success == reachable).float().mean()) > 0.97
    assert not bool((found.success & ~reachable).any())
    assert float((found.x_adv - points.x).abs().max()) <= 0.2 + 1e-6
    hit = found.success
    assert (model(found.x_adv[hit]).argmax(1) != 0).all()
    assert (detector.score(found.x_adv[hit]) <= detector.threshold(0.05)).all()


def test_a_detector_that_looks_at_what_must_change_stops_it(points: Data) -> None:
    model = half_plane((0.0, 1.0))
    low = Data(points.x - torch.tensor([0.0, 0.3]), points.y, points.classes)
    # To be read wrongly the second number has to pass one half, and there nothing else than 0.5 +- 0.1 passes.
    assert bool(evade(model, fitted(Height, model, 0.1), low, Linf(0.5), seed=0).success.all())
    assert not bool(evade(model, fitted(Height, model, -0.05), low, Linf(0.5), seed=0).success.any())


def test_without_a_gradient_the_search_asks(points: Data) -> None:
    model = nn.Sequential(nn.Flatten(), half_plane((1.0, 0.0)))
    images = Data(points.x[:, None, None, :].contiguous(), points.y, points.classes)

    class Flat(Blind):
        def scores(self, x: Tensor) -> Tensor:
            return super().scores(x.flatten(1))

    detector = Flat(model=model, shape=(1, 1, 2), bounds=(0.0, 1.0), reference_=np.linspace(-0.85, 0.15, 101))
    assert not has_gradient(detector)
    assert has_gradient(fitted(Height, model, 0.1))
    found = evade(model, detector, images, Linf(0.2), seed=0, queries=100)
    wrong = model(found.x_adv).argmax(1) != 0
    assert (found.success <= (wrong & (detector.score(found.x_adv) <= detector.threshold(0.05)))).all()
    assert int(found.success.sum()) > 20


def test_bad_weight(points: Data) -> None:
    model = half_plane((1.0, 0.0))
    with pytest.raises(InputError, match="weight"):
        Guarded(model, MSP().fit(model, points), weight=0.0)
    assert Untargeted(points.y).met(model(points.x)).shape == (200,)


class Unsteady(nn.Sequential):
    """A network that a pass in training mode changes, and that is random there."""

    def __init__(self, out: int) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, out))


@pytest.mark.parametrize("name", ["aware", "adaptive", "evade"])
def test_attacks_leave_the_detectors_networks_as_they_are(name: str) -> None:
    with seeded(0, "networks"):
        model, other, backbone = (Unsteady(c) for c in (3, 3, 8))
        x = torch.rand(12, 1, 4, 4)
        parts = {"ssl_backbone": backbone, "ssl_projector": nn.Linear(8, 4), "ssl_classifier": nn.Linear(8, 3)}
    data = Data(x, torch.arange(12) % 3, ("a", "b", "c"))
    beyond = BEYOND(k=3, K=2, **parts).fit(other, data)
    assert isinstance(beyond, FittedBEYOND)
    ball = Linf(0.1)

    def attacked() -> Tensor:
        if name == "evade":
            return evade(model, beyond, data, ball, seed=0, steps=2).x_adv
        if name == "aware":
            return DetectorAwarePGD(ball=ball, steps=2, detector=beyond).run(model, x, Untargeted(data.y), seed=0).x_adv
        adaptive = BeyondAdaptiveAttack(ball=ball, steps=2, samples=3, detector=beyond)
        return adaptive.run(model, x, Targeted((data.y + 1) % 3), seed=0).x_adv

    kept, state = [{k: v.clone() for k, v in m.state_dict().items()} for m in (other, backbone)], torch.get_rng_state()
    assert torch.equal(attacked(), attacked())
    assert torch.equal(torch.get_rng_state(), state)
    for network, before in zip((other, backbone), kept, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert all(m.training for m in network.modules())
        assert all(p.grad is None and p.requires_grad for p in network.parameters())
    joined = ConformalDetector(detectors=(MSP(), MSP()), alpha=0.9, method="marginal").fit(other, data, data)
    assert other in list(joined.networks.modules())
