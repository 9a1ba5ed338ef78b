"""SRAT's loss against its parts, and what its options reduce to."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from assay.attacks import PGD, Linf
from assay.data import Data, load_data
from assay.defenses import SRAT, PGDTraining
from assay.dynamics import feature_separability, head_inputs
from assay.losses import SupConLoss, class_balanced_weights
from assay.nets import MLP, CosineHead, CosineNetwork, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded
from assay.training import State

LAYER = "body.6"


def net() -> torch.nn.Module:
    with seeded(0, "test"):
        return SmallCNN(widths=(4, 8), hidden=16)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")[:96]


def state(data: Data, epoch: int = 0) -> State:
    return State(3, data, 10, epoch=epoch)


def test_without_separation_and_weights_it_is_adversarial_training(data: Data) -> None:
    model, batch = net(), data.batch(torch.arange(48))
    plain = PGDTraining(eps=0.1, attack_steps=3).objective(model, batch, state(data))
    ours = SRAT(eps=0.1, attack_steps=3, lam=0.0, weighting="none").loss(model, batch, state(data), LAYER)
    torch.testing.assert_close(ours, plain)


def test_the_loss_is_the_weighted_part_and_the_separation(data: Data) -> None:
    model, batch = net().eval(), data.batch(torch.arange(40))
    method = SRAT(eps=0.1, attack_steps=3, lam=0.7, tau=0.2, beta=0.99, defer_epoch=2)
    attack = PGD(ball=Linf(0.1), steps=3, step_size=0.25, early_stop=False)
    x = attack(model, batch.x, batch.y, seed=derive(3, 0), index=batch.index)
    fed, _ = head_inputs(model, x)
    weights = class_balanced_weights(torch.bincount(data.y), 0.99)[batch.y].float()
    for epoch, w in ((1, torch.ones(40)), (2, weights)):
        run = state(data, epoch)
        expected = (w * F.cross_entropy(model(x), batch.y, reduction="none")).mean()
        expected = expected + 0.7 * SupConLoss(0.2)(fed, batch.y)
        torch.testing.assert_close(method.loss(model, batch, run, LAYER), expected)
        counts = torch.bincount(batch.y)
        assert run.log[-1]["lonely"] == pytest.approx(float((counts[batch.y] == 1).double().mean()))


def test_weights_may_reach_the_separation(data: Data) -> None:
    model, batch = net().eval(), data.batch(torch.arange(40))
    options = {"eps": 0.1, "attack_steps": 2, "weighting": "inverse", "defer_epoch": 0}
    one, other = (SRAT(weigh_separation=w, **options).loss(model, batch, state(data), LAYER) for w in (0, 1))
    assert not torch.isclose(one, other)


def test_the_queue_holds_the_last_features_and_leaves_fewer_alone(data: Data) -> None:
    model, run, method = net(), state(data), SRAT(attack_steps=1, queue=50)
    for start in (0, 32, 64):
        method.loss(model, data.batch(torch.arange(start, start + 32)), run, LAYER)
    assert run.memory["srat/keys"].shape == (50, 16)
    assert torch.equal(run.memory["srat/labels"], data.y[46:96])
    shares = [entry["lonely"] for entry in run.log]
    assert shares[-1] <= shares[0]


def test_ldam_trains_and_returns_a_cosine_head(data: Data) -> None:
    trained = SRAT(epochs=1, attack_steps=1, base_loss="ldam").fit(net(), data, seed=0)
    assert isinstance(trained, CosineNetwork)
    assert float(predict(trained, data.x).abs().max()) <= 30 + 1e-4
    again = SRAT(epochs=1, attack_steps=1, base_loss="ldam").fit(trained, data, seed=0)
    assert not isinstance(again.model, CosineNetwork)


def test_cosine_network_copies_and_starts_from_the_head(data: Data) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    turned = CosineNetwork(model, "head", scale=5.0)
    fed, head = head_inputs(model, data.x)
    expected = 5 * F.normalize(fed, dim=1) @ F.normalize(head.weight, dim=1).T
    torch.testing.assert_close(predict(turned, data.x), expected.detach())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert isinstance(turned.model.head, CosineHead)
    with pytest.raises(InputError, match="expected"):
        CosineNetwork(model, "body")


@pytest.mark.parametrize("base", ["ce", "focal"])
def test_separates_features_more_than_without(base: str) -> None:
    train, test = load_data("digits:train")[:500], load_data("digits:test")[:300]
    ratios = []
    for lam in (0.0, 1.0):
        method = SRAT(epochs=4, attack_steps=2, eps=0.05, lam=lam, base_loss=base)  # type: ignore[arg-type]
        trained = method.fit(net(), train, seed=0)
        ratios.append(feature_separability(head_inputs(trained, test.x)[0], test.y).ratio)
    assert ratios[1] > 1.2 * ratios[0]


def test_another_layer_may_be_named(data: Data) -> None:
    SRAT(epochs=1, attack_steps=1, feature="body.2").fit(net(), data[:32], seed=0)
    with pytest.raises(InputError, match="expected"):
        SRAT(epochs=1, feature="body.99").fit(net(), data[:32], seed=0)
    with pytest.raises(InputError, match="expected one"):
        SRAT(epochs=1, feature="body.0,body.2").fit(net(), data[:32], seed=0)


def test_separability_is_a_ratio_of_traces() -> None:
    h = torch.tensor([[0.0, 0], [2, 0], [10, 0], [12, 2]], dtype=torch.float64)
    found = feature_separability(h, torch.tensor([0, 0, 3, 3]))
    between = ((torch.tensor([1.0, 0]) - torch.tensor([6.0, 0.5])) ** 2).sum()
    assert found.ratio == pytest.approx(float(between) / 1.5)
    assert -2 <= found.cosine_margin <= 2
    with pytest.raises(InputError, match="expected"):
        feature_separability(h, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match="are the same"):
        feature_separability(torch.full((4, 2), 0.1), torch.tensor([0, 0, 3, 3]))


@pytest.mark.parametrize("options", [{"base_loss": "mse"}, {"tau": 0.0}, {"beta": 1.0}, {"lam": -1.0}, {"eps": 0.0},
                                     {"weighting": "half"}, {"gamma": -1.0}, {"queue": -1}])  # fmt: skip
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SRAT(**options)  # type: ignore[arg-type]


def test_a_model_without_a_linear_head_is_refused_for_ldam(data: Data) -> None:
    class Twice(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(InputError, match="linear head"):
        SRAT(epochs=1, base_loss="ldam").fit(Twice(), data, seed=0)


def test_an_anchor_next_to_its_positive_counts_however_small_its_loss(data: Data) -> None:
    """Two pairs far apart have a loss of 0 in float32, a third pair has not: the mean is over all six."""
    features = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0], [0, 1], [0, -1]], requires_grad=True)
    y, method = torch.tensor([0, 0, 1, 1, 2, 2]), SRAT(eps=0.1, attack_steps=1, tau=0.01)

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.head = torch.nn.ReLU(), torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen(x)
            return self.head(x.flatten(1))

    model, run = Given(), state(data)
    model.seen.register_forward_hook(lambda *_: features)
    batch = replace(data.batch(torch.arange(6)), y=y)
    each = SupConLoss(0.01, reduction="none")(features, y)
    assert int((each == 0).sum()) == 4
    apart = method.loss(model, batch, run, "seen") - replace(method, lam=0.0).loss(model, batch, state(data), "seen")
    torch.testing.assert_close(apart, SupConLoss(0.01)(features, y), rtol=1e-4, atol=1e-5)
    assert run.log[-1]["lonely"] == 0


@pytest.mark.parametrize(("epoch", "weighted"), [(7, False), (8, True)])
def test_weights_come_at_four_fifths_of_the_steps_where_these_are_given(data: Data, epoch: int, weighted: bool) -> None:
    model, batch = net().eval(), data.batch(torch.arange(16))
    method = SRAT(eps=0.1, attack_steps=1, steps=30, batch_size=32, lam=0.0, weighting="inverse")
    late = replace(method, defer_epoch=0 if weighted else 100)
    a, b = (m.loss(model, batch, state(data, epoch), LAYER) for m in (method, late))
    torch.testing.assert_close(a, b)


def test_cosine_network_keeps_precision_and_frozen_weights_and_takes_a_bare_layer() -> None:
    linear = torch.nn.Linear(4, 3).double().requires_grad_(False)
    found, x = CosineNetwork(linear, ""), torch.rand(2, 4, dtype=torch.float64)
    expected = 30 * F.normalize(x, dim=1) @ F.normalize(linear.weight, dim=1).T
    torch.testing.assert_close(found(x), expected)
    assert not any(p.requires_grad for p in found.parameters())
