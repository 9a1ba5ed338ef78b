"""Mixtures against sums of probabilities by hand, radii against closed forms, and what a mixing network learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks import L2, PGD, Linf
from assay.data import Data, load_data
from assay.defenses import (
    AdaptiveMixedClassifier,
    MixedClassifier,
    MixingNet,
    MixingTraining,
    RandomisedPGD,
    certified_radius_lipschitz,
    certified_radius_smoothing,
)
from assay.defenses.mixture_attack import Deceive, WithGamma
from assay.nets import SmallCNN
from assay.papers.adaptive_smoothing import certificates
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Supervised

LAYERS = ("body.1", "body.3")


def network(name: str) -> nn.Module:
    with seeded(0, name):
        return SmallCNN(widths=(4, 8), hidden=16).eval()


def adaptive(**options: object) -> AdaptiveMixedClassifier:
    with seeded(0, "mixing"):
        net = MixingNet((8, 16), (8, 8))
    options = {"std_layers": LAYERS, "robust_layers": LAYERS, **options}
    return AdaptiveMixedClassifier(network("g"), network("h"), net, **options).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")[:200]


@given(st.floats(0, 1), st.floats(0.1, 5), st.floats(0.1, 5))
@settings(max_examples=20)
def test_the_mixture_is_the_logarithm_of_mixed_probabilities(
    alpha: float, std_scale: float, robust_scale: float
) -> None:
    g, h, x = network("g").double(), network("h").double(), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    mixed = MixedClassifier(g, h, alpha, std_scale, robust_scale).eval()
    with torch.no_grad():
        expected = (1 - alpha) * (std_scale * g(x)).softmax(1) + alpha * (robust_scale * h(x)).softmax(1)
        torch.testing.assert_close(mixed(x), expected.log(), rtol=0, atol=1e-10)


def test_far_logits_keep_finite_values_and_gradients() -> None:
    g, h = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        g.weight.mul_(1e4)
    x = torch.randn(6, 2, requires_grad=True)
    out = MixedClassifier(g.eval(), h.eval(), 0.7, 5.0).eval()(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.isfinite(out).all()
    assert torch.isfinite(grad).all()


def test_mixed_logits_and_the_ends(train: Data) -> None:
    g, h = network("g"), network("h")
    mixed = MixedClassifier(g, h, 0.25, 2.0, 3.0, space="logit").eval()
    with torch.no_grad():
        expected = (0.75 * 2 * g(train.x) + 0.25 * 3 * h(train.x)).log_softmax(1)
        torch.testing.assert_close(mixed(train.x), expected)
        torch.testing.assert_close(mixed.at(0.0)(train.x), (2 * g(train.x)).log_softmax(1))
        torch.testing.assert_close(mixed.at(1.0)(train.x), (3 * h(train.x)).log_softmax(1))


def test_another_weight_leaves_the_models_in_their_mode(train: Data) -> None:
    mixed = MixedClassifier(network("g"), network("h"), 0.25)
    other = mixed.at(0.75)
    with torch.no_grad():
        assert torch.isfinite(other(train.x[:2])).all()
        assert torch.isfinite(mixed(train.x[:2])).all()


def test_a_scan_attacks_each_mixture_on_its_own_output(train: Data) -> None:
    g = Supervised(epochs=6).fit(network("g"), train, seed=0)
    mixed, attack = MixedClassifier(g, network("h")).eval(), PGD(ball=Linf(0.2), steps=4)
    scan = mixed.scan(train.x, train.y, (0.0, 0.4, 1.0), attack, seed=5)
    half = mixed.at(0.4)
    right = predict(half, train.x).argmax(1) == train.y
    held = predict(half, attack(half, train.x, train.y, seed=5)).argmax(1) == train.y
    assert scan.clean[1].equal(right)
    assert scan.robust[1].equal(right & held)
    assert [r["alpha"] for r in scan.table()] == [0.0, 0.4, 1.0]
    assert scan.table()[0]["robust"] < scan.table()[0]["clean"]


@pytest.mark.parametrize("seed", range(2))
def test_the_certificates_on_drawn_cases_and_that_they_need_the_offset(seed: int) -> None:
    real, sham = certificates(20, seed), certificates(20, seed, "missing-offset")
    assert real["off"] <= 1e-6 < 0.01 < sham["off"]
    assert real["spare"] >= -1e-9
    assert real["plain"] <= 1e-9


def test_radii_by_hand() -> None:
    h = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]], dtype=torch.float64)
    y, law, lip = torch.tensor([0, 0, 0]), NormalDist(), torch.tensor([1.0, 2.0, 0.2])
    found = certified_radius_lipschitz(h, y, 0.9, lip)
    by_class = [(0.9 * (0.8 - p) - 0.1) / (0.9 * (1 + k)) for p, k in ((0.15, 2.0), (0.05, 0.2))]
    assert float(found[0]) == pytest.approx(min(by_class))
    assert found[1:].tolist() == [0.0, 0.0]
    smooth = certified_radius_smoothing(h, y, 0.9, 0.5)
    assert float(smooth[0]) == pytest.approx(0.25 * (law.inv_cdf(0.72) - law.inv_cdf(0.9 * 0.15 + 0.1)))
    assert float(smooth[1]) == 0.0
    careful = certified_radius_smoothing(h, y, 0.9, 0.5, error=0.02)
    assert float(careful[0]) == pytest.approx(0.25 * (law.inv_cdf(0.9 * 0.78) - law.inv_cdf(0.9 * 0.17 + 0.1)))
    for alpha in (0.0, 0.3, 0.5):
        assert certified_radius_lipschitz(h, y, alpha, 1.0).tolist() == [0.0] * 3
        assert certified_radius_smoothing(h, y, alpha, 0.5).tolist() == [0.0] * 3
    sure = torch.tensor([[1.0, 0.0]])
    assert float(certified_radius_smoothing(sure, torch.tensor([0]), 1.0, 0.5)) == math.inf


def test_an_adaptive_mixture_is_a_mixture_at_its_weights(train: Data) -> None:
    model = adaptive(alpha_range=(0.6, 0.9), std_scale=2.0)
    with torch.no_grad():
        alpha = model.alpha(train.x)[:, None]
        expected = (1 - alpha) * (2 * model.std_model(train.x)).softmax(1) + alpha * model.robust_model(
            train.x
        ).softmax(1)
        torch.testing.assert_close(model(train.x), expected.log(), rtol=1e-4, atol=1e-5)
    assert 0.6 <= float(alpha.min()) < float(alpha.max()) <= 0.9
    whole = predict(model, train.x, batch_size=200)
    torch.testing.assert_close(predict(model, train.x, batch_size=7), whole, rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_the_weight_unless_cut(train: Data) -> None:
    model, x = adaptive(), train.x[:4].clone().requires_grad_()
    (through,) = torch.autograd.grad(model.alpha(x).sum(), x)
    assert float(through.abs().max()) > 0
    cut = model.detached()
    assert torch.autograd.grad(cut.alpha(x).sum(), x, allow_unused=True)[0] is None
    assert model.policy_graph
    torch.testing.assert_close(cut(x), model(x))


def test_features_may_be_stated_by_the_models(train: Data) -> None:
    class Telling(nn.Module):
        def __init__(self, net: SmallCNN) -> None:
            super().__init__()
            self.net = net

        def features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            first = self.net.body[:2](x)
            second = self.net.body[2:4](first)
            return self.net.head(self.net.body[4:](second)), [first, second]

    named = adaptive()
    told = adaptive(std_layers=(), robust_layers=())
    told.std_model, told.robust_model = (Telling(m).eval() for m in (named.std_model, named.robust_model))  # type: ignore[arg-type]
    assert predict(told, train.x).equal(predict(named, train.x))


def test_version_four_reduces_the_deeper_features() -> None:
    first, second = torch.rand(3, 8, 8, 8), torch.rand(3, 40, 4, 4)
    assert MixingNet((8, 40), (8, 8), reduced=12)(first, second).shape == (3,)


def test_the_composite_objective_and_loss_by_hand() -> None:
    logits, y = torch.tensor([[0.3, -0.2, 1.5], [0.1, 0.4, -2.0]]), torch.tensor([0, 1])
    w = torch.tensor([0.0, 0.4])
    found = Deceive(y, w).likelihood(logits)
    own = [math.log(math.exp(a) + math.exp(b)) - c for a, b, c in ((0.3, -0.2, 0.3), (0.1, 0.4, 0.4))]
    expected = [own[0], 0.6 * own[1] + 0.4 * math.log1p(math.exp(2.0))]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert Deceive(y, w).met(logits).tolist() == [False, False]  # the weight's column is no class
    loss = MixingTraining(constants=(1.0, 0.5, 0.1)).loss(logits[:, :2], logits[:, 2], y, torch.tensor([1.0, 0.0]))
    bce = [math.log1p(math.exp(-1.5)), math.log1p(math.exp(-2.0))]
    torch.testing.assert_close(loss, torch.tensor([b + 0.5 * c + 0.1 * b * c for b, c in zip(bce, own, strict=True)]))


def test_the_training_attack_draws_its_budget_for_each_sample(train: Data) -> None:
    model, part = adaptive(), train[:60]
    attack, goal = RandomisedPGD(ball=Linf(0.1), steps=6), Deceive(part.y, torch.full((60,), 0.2))
    first = attack.run(WithGamma(model), part.x, goal, seed=1, index=part.index).x_adv
    split = [attack.run(WithGamma(model), p.x, goal.select(slice(a, a + 20)), seed=1, index=p.index).x_adv
             for a, p in ((a, part[a : a + 20]) for a in (0, 20, 40))]  # fmt: skip
    torch.testing.assert_close(first, torch.cat(split), rtol=0, atol=1e-5)
    size = (first - part.x).flatten(1).abs().amax(1)
    assert float(size.max()) <= 0.11 + 1e-6
    assert float(size.min()) < 0.06
    assert float(size.std()) > 0.01


def test_training_moves_the_mixing_network_alone_and_leaves_the_input(train: Data) -> None:
    start = adaptive(gamma_bias=0.0, gamma_momentum=0.3)
    before, state = copy.deepcopy(start.state_dict()), torch.get_rng_state()
    training = MixingTraining(
        attack=RandomisedPGD(ball=Linf(0.2), steps=3), epochs=8, lr=1e-2, constants=(1.0, 0.0, 0.0), deception=0.0
    )
    trained = start.fit(train, seed=0, training=training)
    assert all(before[k].equal(v) for k, v in start.state_dict().items())
    assert torch.get_rng_state().equal(state)
    for part in ("std_model", "robust_model"):
        pairs = zip(getattr(start, part).parameters(), getattr(trained, part).parameters(), strict=True)
        assert all(a.equal(b) for a, b in pairs)
    short = MixingTraining(attack=RandomisedPGD(ball=Linf(0.2), steps=2), epochs=1)
    twice = [start.fit(train, seed=0, training=short) for _ in range(2)]
    assert predict(twice[0], train.x).equal(predict(twice[1], train.x))
    goal = Deceive(train.y, torch.zeros(len(train)))
    x_adv = training.attack.run(WithGamma(trained), train.x, goal, seed=3).x_adv
    with torch.no_grad():
        higher = [float((m.both(x_adv)[1] > m.both(train.x)[1]).double().mean()) for m in (start, trained)]
    assert higher[1] > max(higher[0], 0.5) + 0.1, higher


def test_inputs_attacked_before_join_with_their_labels(train: Data) -> None:
    training = MixingTraining(attack=RandomisedPGD(ball=Linf(0.1), steps=1), epochs=1)
    plain, more = (
        training.fit(adaptive(), train, seed=0, **extra)
        for extra in ({}, {"attacked": 1 - train.x, "attacked_labels": torch.ones(len(train))})
    )
    assert not predict(plain, train.x).equal(predict(more, train.x))


def test_bad_input(train: Data) -> None:
    g, h, probs, y = network("g"), network("h"), torch.tensor([[0.7, 0.3]]), torch.tensor([0])
    for options in ({"alpha": 1.2}, {"alpha": -0.1}, {"std_scale": 0.0}, {"space": "odds"}):
        with pytest.raises(InputError):
            MixedClassifier(g, h, **options)
    with pytest.raises(InputError, match="training mode"):
        MixedClassifier(copy.deepcopy(g).train(), h)(train.x)
    with pytest.raises(InputError, match="classes"):
        MixedClassifier(g, SmallCNN(classes=7).eval()).eval()(train.x)
    for low, high in ((0.5, 1.1), (-0.1, 0.5), (0.8, 0.6)):
        with pytest.raises(InputError, match="alpha_range"):
            adaptive(alpha_range=(low, high))
    with pytest.raises(InputError, match="layers"):
        adaptive(std_layers=("body.1", "nowhere"))
    with pytest.raises(InputError, match="one sample"):
        adaptive().train()(train.x[:1])
    with pytest.raises(InputError, match="AdaptiveMixedClassifier"):
        MixingTraining().fit(g, train, seed=0)
    with pytest.raises(InputError, match="constants"):
        MixingTraining(constants=(-1.0, 0.0, 0.0))
    for call in (
        lambda: certified_radius_lipschitz(probs * 2, y, 0.8, 1.0),
        lambda: certified_radius_lipschitz(probs, y, 1.5, 1.0),
        lambda: certified_radius_lipschitz(probs, y, 0.8, 0.0),
        lambda: certified_radius_smoothing(probs, y, 0.8, -1.0),
        lambda: certified_radius_smoothing(probs, torch.tensor([2]), 0.8, 1.0),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize(
    "make",
    [
        lambda d: MixedClassifier(network("g"), network("h"), std_scale=math.inf),
        lambda d: RandomisedPGD(ball=L2(0.5)),
        lambda d: certified_radius_lipschitz(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0]), 0.8, torch.ones(2)),
        lambda d: certified_radius_smoothing(torch.tensor([[0.7, 0.3]]), torch.tensor([0]), 0.8, math.inf),
        lambda d: MixingTraining().fit(adaptive(), d, seed=0, attacked=d.x, attacked_labels=2 * torch.ones(len(d))),
    ],
)
def test_numbers_and_balls_that_have_no_meaning(make: Callable[[Data], object], train: Data) -> None:
    with pytest.raises(InputError, match="expected"):
        make(train)


def test_weights_of_a_scan_may_be_an_array(train: Data) -> None:
    few, attack = train[:4], PGD(ball=Linf(0.1), steps=1)
    mixed = MixedClassifier(network("g"), network("h"))
    assert mixed.scan(few.x, few.y, torch.tensor([0.0, 1.0]), attack, seed=0).alphas == (0.0, 1.0)  # type: ignore[arg-type]
