"""The contract that every exported inspector of training sets keeps."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import assay.detect as room
from assay.attacks import badnets, poison
from assay.data import Data, load_data
from assay.detect import Inspection
from assay.nets import ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Supervised

METHODS = [c for c in (getattr(room, n) for n in room.__all__) if getattr(c, "kind", None) == "inspector"]
every = pytest.mark.parametrize("method", [c() for c in METHODS], ids=lambda m: type(m).__name__)
Planted = tuple[nn.Module, Data, np.ndarray]


@pytest.fixture(scope="module")
def planted() -> Planted:
    """A network trained on digits of which a fifth of the zeros are planted, and which they are."""
    train = load_data("digits:train")
    x, y, mask = poison(train.x, train.y, badnets, 0, 0.02, seed=1)
    data = replace(train, x=x, y=y)
    with seeded(1, "init"):
        model = SmallCNN()
    return Supervised(epochs=12).fit(model, data, seed=1), data, mask.numpy()


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return [m.training for m in model.modules()], hooks, [(p.requires_grad, p.grad is None) for p in model.parameters()]


def same(a: Inspection, b: Inspection) -> bool:
    return all(np.array_equal(getattr(a, k), getattr(b, k), equal_nan=True) for k in ("score", "flagged", "evidence"))


def test_the_room_has_inspectors() -> None:
    assert len(METHODS) >= 2


@every
def test_one_verdict_a_sample_and_the_same_again(method: Any, planted: Planted) -> None:
    model, data, _ = planted
    found = method.inspect(model, data, seed=0)
    assert found.score.shape == found.flagged.shape == (len(data),)
    assert found.score.dtype == np.float64
    assert found.flagged.dtype == np.bool_
    assert found.evidence.shape == (10,)
    assert np.isfinite(found.score).all()
    assert np.isfinite(found.evidence).all()
    assert same(found, method.inspect(model, data, seed=0))


@every
def test_flagged_samples_score_highest_in_their_class(method: Any, planted: Planted) -> None:
    model, data, _ = planted
    found, y = method.inspect(model, data, seed=0), data.y.numpy()
    for c in range(10):
        flagged, rest = (found.score[(y == c) & part] for part in (found.flagged, ~found.flagged))
        assert len(flagged) == 0 or flagged.min() >= rest.max()


@every
def test_planted_samples_stand_out_in_their_class(method: Any, planted: Planted) -> None:
    model, data, mask = planted
    zeros = data.y.numpy() == 0
    found = method.inspect(model, data, seed=0)
    assert roc_auc_score(mask[zeros], found.score[zeros]) > 0.6


@every
def test_model_data_and_global_randomness_stay_as_they_are(method: Any) -> None:
    model = ResNet((1, 8, 8), width=4)
    model.train()
    model.stages[1].eval()
    next(model.parameters()).requires_grad_(False)
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 10
    data = Data(x.clone(), y.clone(), tuple("0123456789"))
    state, before = copy.deepcopy(model.state_dict()), snapshot(model)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    method.inspect(model, data, seed=0)
    assert snapshot(model) == before
    assert all(state[k].equal(v) for k, v in model.state_dict().items())
    assert data.x.equal(x)
    assert data.y.equal(y)
    assert torch_state.equal(torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002


@every
def test_results_do_not_depend_on_batches(method: Any, planted: Planted) -> None:
    model, data, _ = planted
    whole, small = (replace(method, batch_size=b).inspect(model, data, seed=0) for b in (256, 7))
    np.testing.assert_allclose(whole.score, small.score, rtol=1e-3, atol=1e-3)
    assert (whole.flagged == small.flagged).mean() >= 0.995


@every
def test_order_of_the_samples_does_not_matter_to_the_verdicts(method: Any, planted: Planted) -> None:
    model, data, _ = planted
    back = torch.arange(len(data) - 1, -1, -1)
    a, b = method.inspect(model, data, seed=0), method.inspect(model, data[back], seed=0)
    assert (a.flagged == b.flagged[::-1]).mean() > 0.85  # a start of k-means may differ


@every
def test_small_and_constant_classes_are_passed_over(method: Any, planted: Planted) -> None:
    model, data, _ = planted
    few = torch.cat([torch.where(data.y == c)[0][:k] for c, k in ((0, 3), (1, 30), (2, 1))])
    x = torch.cat((data.x[few], data.x[:1].expand(6, -1, -1, -1)))
    some = Data(x, torch.cat((data.y[few], torch.full((6,), 5))), data.classes)
    found = method.inspect(model, some, seed=0)
    assert not found.flagged[some.y.numpy() == 0].any()
    assert not found.score[some.y.numpy() == 0].any()
    assert np.isfinite(found.evidence[[1, 5]]).all()
    assert np.isnan(found.evidence[[0, 2, 3, 4, 6, 7, 8, 9]]).all()


@every
def test_bad_input(method: Any, planted: Planted) -> None:
    model, data, _ = planted
    with pytest.raises(InputError, match="batch_size"):
        replace(method, batch_size=0).inspect(model, data, seed=0)
    with pytest.raises(InputError, match="no layer 'nose'"):
        replace(method, layer="nose").inspect(model, data, seed=0)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        method.inspect(broken, data, seed=0)
