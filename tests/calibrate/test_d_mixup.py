"""d-Mixup: weights, partners, and plain training where a sample is mixed with itself."""

import pytest
import torch
import torch.nn.functional as F

from assay.calibrate import DMixupTrainer, d_mixup_batch
from assay.data import Batch, Data
from assay.nets import MLP
from assay.papers.overlap_calibration import _SameClass
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Supervised


def _batch(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 2, generator=g), F.one_hot(torch.arange(n) % 3, 3).float()


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("per_sample", [False, True])
def test_labels_are_mixed_as_the_inputs(d: int, per_sample: bool) -> None:
    _, y = _batch()
    inputs, labels = d_mixup_batch(y, y, d=d, per_sample=per_sample, seed=1)
    assert torch.equal(inputs, labels)  # inputs that are their labels
    assert torch.allclose(labels.sum(1), torch.ones(12))
    assert labels.min() >= 0
    assert torch.allclose(labels.sum(0), y.sum(0), atol=1e-5) or per_sample  # permutations under one weight


def test_one_weight_or_one_a_sample() -> None:
    n = 2000
    x = torch.zeros(n, 1)
    x[: n // 2] = 1.0
    partners = torch.arange(n).roll(n // 2)[None]  # every sample with one of the other half
    one, _ = d_mixup_batch(x, x.expand(n, 2), partners=partners, seed=0)
    each, _ = d_mixup_batch(x, x.expand(n, 2), partners=partners, per_sample=True, seed=0)
    assert len(one[: n // 2].unique()) == 1
    assert torch.allclose(one[: n // 2] + one[n // 2 :], torch.ones(n // 2, 1))
    weights = each[: n // 2, 0].sort().values  # uniform on [0, 1] for d = 1
    assert (weights - torch.linspace(0, 1, n // 2)).abs().max() < 0.06


def test_mixing_with_oneself_changes_nothing() -> None:
    x, y = _batch()
    itself = torch.arange(12).expand(3, 12)
    mixed, labels = d_mixup_batch(x, y, d=3, partners=itself, seed=0)
    assert torch.allclose(mixed, x, atol=1e-6)
    assert torch.allclose(labels, y, atol=1e-6)


def test_partners_of_the_own_class_keep_labels_hard() -> None:
    y = torch.arange(30) % 4
    batch = Batch(torch.zeros(30, 2), y, torch.arange(30))
    partners = _SameClass().partners(batch, 5)
    assert torch.equal(y[partners[0]], y)
    assert torch.equal(partners[0].sort().values, torch.arange(30))
    assert (partners[0] != torch.arange(30)).float().mean() > 0.5


def test_hedges_where_two_classes_overlap() -> None:
    # the same points under both labels half of the time: plain training memorises, Mixup does not
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(120, 8, generator=g), torch.randint(2, (120,), generator=g)
    data = Data(x, y, ("a", "b"))
    new = torch.rand(400, 8, generator=g)
    with seeded(0, "start"):
        start = MLP((8,), 2, (128,))
    plan = {"epochs": 150, "lr": 5e-3, "schedule": "constant"}
    plain, mixed = (
        predict(t.fit(start, data, seed=0), new).softmax(1).max(1).values.mean()
        for t in (Supervised(**plan), DMixupTrainer(**plan))
    )
    assert mixed < plain - 0.04


def test_bad_options() -> None:
    x, y = _batch()
    wrong = [torch.zeros(2, 12).long(), torch.zeros(1, 12), torch.full((1, 12), 12), torch.full((1, 12), -1)]
    for bad in ({"d": 0}, {"d": 12}, {"concentration": 0.0}, *({"partners": p} for p in wrong)):
        with pytest.raises(InputError, match="d_mixup_batch"):
            d_mixup_batch(x, y, seed=0, **bad)
    for bad in ({"d": 0}, {"d": 64}, {"concentration": -1.0}):
        with pytest.raises(InputError, match="DMixupTrainer"):
            DMixupTrainer(**bad)
    with pytest.raises(InputError, match="d=5"):
        DMixupTrainer(d=5, epochs=1).fit(
            MLP((6,), 3), Data(x[:4].flatten(1), y[:4].argmax(1), ("a", "b", "c"), (-9, 9)), seed=0
        )
