"""Contrastive training for a numeric target, its regressors and the measures of order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.losses import SupReMixLoss
from assay.represent import ContrastiveRegressionPretrainer, continuity, embedding_regressor, ordinality
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws, seeded
from assay.training import Plan


def _circle(n: int = 80) -> Data:
    """Points on a quarter of a circle, with the angle in degrees as target."""
    degrees = torch.linspace(0, 90, n)
    x = torch.stack((torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()), 1)
    return Data(x, degrees.long(), tuple(map(str, range(91))), fields={"target": degrees})


def _shaken(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    return (x + 0.02 * draws.normal(*x.shape[1:])).clamp(0, 1)


def _encoder() -> nn.Module:
    with seeded(0, "test"):
        return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8))


def _method(**options: object) -> ContrastiveRegressionPretrainer:
    loss = SupReMixLoss(0.1, 10, tolerance=1.5)
    return ContrastiveRegressionPretrainer(loss=loss, augment=_shaken, batch_size=40, **options)  # type: ignore[arg-type]


def test_order_is_one_on_a_line_and_kept_by_scale() -> None:
    y = torch.tensor([0.0, 1, 3, 7, 15])
    z = torch.stack((2 * y, torch.zeros(5)), 1)
    assert ordinality(z, y) == pytest.approx(1)
    assert ordinality(5 * z + 1, y) == pytest.approx(1)
    g = torch.Generator().manual_seed(0)
    assert abs(ordinality(torch.randn(200, 3, generator=g), torch.randn(200, generator=g))) < 0.1


def test_continuity_is_the_variance_among_neighbours() -> None:
    z, y = torch.tensor([[0.0, 0], [1, 0], [2, 0], [10, 0]]), torch.tensor([0.0, 2, 4, 9])
    # nearest two of each: (2, 4), (0, 4), (2, 0), (4, 2)
    assert continuity(z, y, k=2) == pytest.approx((1 + 4 + 1 + 1) / 4)


def test_training_orders_the_embedding_and_leaves_its_input() -> None:
    data, encoder = _circle(), _encoder()
    kept = [p.clone() for p in encoder.parameters()]
    state = torch.random.get_rng_state()
    trained, again = (_method(epochs=10, projection=None).fit(encoder, data, seed=1) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(kept, encoder.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    y = data.fields["target"]
    before, after = (ordinality(F.normalize(predict(m, data.x), dim=1), y) for m in (encoder, trained))
    assert after > max(before, 0.9)


def test_order_and_continuity_do_not_depend_on_where_the_points_lie() -> None:
    g = torch.Generator().manual_seed(0)
    z, y = torch.randint(1000, (60, 20), generator=g).double(), torch.rand(60, generator=g)
    for measure in (ordinality, continuity):
        assert measure(z + 2.0**33, y) == measure(z, y)


def test_a_frozen_encoder_is_read_as_it_evaluates_and_keeps_its_statistics() -> None:
    data = _circle()
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).eval()
    net[0].weight.requires_grad_(False)
    for tune in (False, True):
        fitted = embedding_regressor(net, data, "l1", tune=tune, plan=Plan(epochs=1))
        kept = [torch.equal(v, net.state_dict()[k]) for k, v in fitted.encoder.state_dict().items()]
        assert all(kept) != tune
        assert [p.requires_grad for p in fitted.encoder.parameters()] == [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("kind", ["ridge", "l1"])
def test_double_precision_stays(kind: Any) -> None:
    data, encoder = _circle(8), _encoder().double()
    double = replace(data, x=data.x.double())
    assert embedding_regressor(encoder, double, kind, plan=Plan(epochs=1))(double.x).dtype == torch.float64
    trained = replace(_method(epochs=1), augment=lambda x, draws: x).fit(encoder, double, seed=0)
    assert trained(double.x).dtype == torch.float64


def test_a_projection_is_thrown_away() -> None:
    trained = _method(epochs=1, projection=4).fit(_encoder(), _circle(), seed=0)
    assert predict(trained, _circle().x).shape == (80, 8)


def test_ridge_and_l1_regressors() -> None:
    data, encoder = _circle(), _encoder()
    y = data.fields["target"]
    ridge = embedding_regressor(encoder, data)
    assert (predict(ridge, data.x)[:, 0] - y).abs().mean() < 5
    plan = Plan(epochs=60, batch_size=20, lr=1e-2)
    frozen, tuned = (embedding_regressor(encoder, data, "l1", tune=t, plan=plan, seed=0) for t in (False, True))
    assert torch.equal(frozen.encoder[0].weight, encoder[0].weight)  # type: ignore[index]
    assert not torch.equal(tuned.encoder[0].weight, encoder[0].weight)  # type: ignore[index]
    assert all(p.requires_grad for p in frozen.parameters())
    errors = [float((predict(m, data.x)[:, 0] - y).abs().mean()) for m in (frozen, tuned)]
    assert errors[1] < 8 < float((y - y.mean()).abs().mean())
    assert errors[0] < 20


def test_bad_input() -> None:
    data, encoder = _circle(), _encoder()
    y, z = torch.arange(5.0), torch.zeros(5, 2)
    for bad in ((z[:2], y[:2]), (z, y[:-1]), (z + math.nan, y), (z, y), (torch.rand(5, 2), 0 * y)):
        with pytest.raises(InputError):
            ordinality(*bad)
    for k in (1, 5):
        with pytest.raises(InputError, match="k="):
            continuity(z, y, k=k)
    with pytest.raises(InputError):
        embedding_regressor(encoder, data, "lasso")  # type: ignore[arg-type]
    target = data.fields["target"]
    for wrong in (target[:, None], torch.where(target > 3, math.nan, target)):
        for kind in ("ridge", "l1"):
            with pytest.raises(InputError, match="targets"):
                embedding_regressor(encoder, replace(data, fields={"target": wrong}), kind)
    with pytest.raises(InputError, match="two"):
        embedding_regressor(encoder, data[:1])
    with pytest.raises(InputError, match="tune"):
        embedding_regressor(encoder, data, tune=True)
    with pytest.raises(InputError):
        _method(projection=1).fit(encoder, data, seed=0)
    with pytest.raises(InputError):
        _method().fit(encoder, data[:1], seed=0)
