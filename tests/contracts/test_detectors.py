"""The contract that every exported detector keeps."""

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
from assay.attacks import DDN, badnets, poison
from assay.data import Data, load_data
from assay.data.outsets import OUT_SETS
from assay.detect.base import FittedDetector
from assay.nets import ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Subject, load
from assay.training import Supervised

METHODS = [c for c in (getattr(room, n) for n in room.__all__) if getattr(c, "kind", None) == "detector"]
every = pytest.mark.parametrize("method", [c() for c in METHODS], ids=lambda m: type(m).__name__)
pytestmark = pytest.mark.filterwarnings("ignore:conformal. .* too few")


def finders(what: str) -> pytest.MarkDecorator:
    """The methods for abnormal inputs of one sort: what their ``finds`` names, shifts where they name none."""
    chosen = [c() for c in METHODS if what in getattr(c, "finds", ("shifts",))]
    return pytest.mark.parametrize("method", chosen, ids=lambda m: type(m).__name__)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return load("digits")


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return [m.training for m in model.modules()], flags, hooks


def train_of(subject: Subject, n: int = 400) -> Data:
    assert subject.train is not None
    return subject.train[:n]


def test_the_room_has_detectors() -> None:
    assert len(METHODS) >= 3


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_floating_type_is_refused(method: Any, dtype: torch.dtype, digits: Subject) -> None:
    data = train_of(digits, 60)
    if type(method).__name__ in ("EPSAD", "ScoreNorm"):  # they never ask the model
        assert method.fit(copy.deepcopy(digits.model).to(dtype), data).score(digits.test.x[:5]).isfinite().all()
        return
    with pytest.raises(InputError, match=f"model holds {str(dtype)[6:]} and fails on inputs of float32"):
        method.fit(copy.deepcopy(digits.model).to(dtype), data)


@every
def test_inference_mode_of_the_caller_changes_nothing(method: Any, digits: Subject) -> None:
    data, x = train_of(digits, 60), digits.test.x[:5]
    plain = method.fit(digits.model, data).score(x)
    with torch.inference_mode():
        given = data.with_x(data.x.clone())
        inside = method.fit(digits.model, given).score(x.clone())
    assert inside.equal(plain)


@every
def test_one_finite_score_a_sample_and_the_same_again(method: Any, digits: Subject) -> None:
    first = method.fit(digits.model, train_of(digits)).score(digits.test.x[:50])
    again = method.fit(digits.model, train_of(digits)).score(digits.test.x[:50])
    assert first.shape == (50,)
    assert first.dtype == torch.float64
    assert torch.isfinite(first).all()
    assert first.equal(again)
    assert len(first.unique()) > 25


@every
def test_model_data_and_global_randomness_stay_as_they_are(method: Any) -> None:
    model = ResNet((1, 8, 8), width=4)
    model.train()
    model.stages[1].eval()
    next(model.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 10
    data = Data(x.clone(), y.clone(), tuple("0123456789"))
    state, before = copy.deepcopy(model.state_dict()), snapshot(model)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    method.fit(model, data).score(data.x)
    assert snapshot(model) == before
    assert all(state[k].equal(v) for k, v in model.state_dict().items())
    assert data.x.equal(x)
    assert data.y.equal(y)
    assert torch_state.equal(torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002


@every
def test_results_do_not_depend_on_batches(method: Any, digits: Subject) -> None:
    x, data = digits.test.x[:100], train_of(digits)
    whole = method.fit(digits.model, data)
    small = replace(method, batch_size=7).fit(digits.model, data)
    a, b = whole.score(x), small.score(x)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    verdicts = (a > whole.threshold(0.1)) == (b > small.threshold(0.1))
    assert verdicts.double().mean() >= 0.995
    torch.testing.assert_close(whole.score(x[40:60]), a[40:60], rtol=1e-5, atol=1e-6)


@every
def test_what_attacks_follow_is_the_score(method: Any, digits: Subject) -> None:
    fitted = method.fit(digits.model, train_of(digits))
    x = digits.test.x[:20].clone().requires_grad_()
    if type(fitted).graph is FittedDetector.graph:
        with pytest.raises(InputError, match="no gradient"):
            fitted.graph(x)
        return
    score = fitted.graph(x)
    torch.testing.assert_close(score.detach().cpu().double(), fitted.score(x.detach()), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(score.sum(), x)
    assert torch.isfinite(slope).all()
    assert (slope.flatten(1).abs().amax(1) > 0).double().mean() > 0.8


@every
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 0.5])
def test_threshold_keeps_the_false_positive_rate_on_the_holdout(method: Any, fpr: float, digits: Subject) -> None:
    assert digits.holdout is not None
    fitted = method.fit(digits.model, train_of(digits), digits.holdout)
    rate = float((fitted.score(digits.holdout.x) > fitted.threshold(fpr)).double().mean())
    assert fpr - 2 / len(digits.holdout) <= rate <= fpr
    assert fitted.threshold_from_ == "holdout"
    assert method.fit(digits.model, train_of(digits)).threshold_from_ == "fit data"


@finders("shifts")
@pytest.mark.parametrize("out", sorted(OUT_SETS))
def test_beats_chance_on_shifted_inputs(method: Any, out: str, digits: Subject) -> None:
    fitted = method.fit(digits.model, train_of(digits, 1000))
    inside, outside = fitted.score(digits.test.x[:300]), fitted.score(OUT_SETS[out](digits.test, 300, seed=1))
    label = np.repeat([0, 1], 300)
    assert roc_auc_score(label, torch.cat((inside, outside))) > 0.6


@pytest.fixture(scope="module")
def poisoned() -> nn.Module:
    train = load_data("digits:train")
    x, y, _ = poison(train.x, train.y, badnets, 0, 0.1, seed=0)
    with seeded(0, "init"):
        model = SmallCNN(widths=(8, 16))
    return Supervised(epochs=8).fit(model, replace(train, x=x, y=y), seed=0)


@finders("triggers")
def test_beats_chance_on_triggered_inputs(method: Any, poisoned: nn.Module, digits: Subject) -> None:
    assert digits.holdout is not None
    fitted, others = method.fit(poisoned, digits.holdout), digits.test[digits.test.y != 0].x
    marked = badnets(others)
    assert float((predict(poisoned, marked).argmax(1) == 0).double().mean()) > 0.9
    label = np.repeat([0, 1], len(others))
    assert roc_auc_score(label, torch.cat((fitted.score(others), fitted.score(marked)))) > 0.6


@finders("attacks")
def test_beats_chance_on_adversarial_inputs(method: Any, digits: Subject) -> None:
    fitted, some = method.fit(digits.model, train_of(digits, 1000)), digits.test[:300]
    found = DDN()(digits.model, some.x, some.y, seed=0)
    fooled = predict(digits.model, found).argmax(1) != some.y
    assert fooled.double().mean() > 0.9
    label = np.repeat([0, 1], len(some))
    assert roc_auc_score(label, torch.cat((fitted.score(some.x), fitted.score(found)))) > 0.6


@every
def test_bad_input(method: Any, digits: Subject) -> None:
    data = train_of(digits)
    fitted = method.fit(digits.model, data)
    x = digits.test.x[:4]
    nan = x.clone()
    nan[0, 0, 0, 0] = torch.nan
    for bad, words in (
        (nan, "finite"),
        (x[:0], "n >= 1"),
        (x + 1, "values in"),
        (x[:, :, :4], "expected \\(1, 8, 8\\)"),
        ((x * 255).to(torch.uint8), "floating"),
    ):
        with pytest.raises(InputError, match=words):
            fitted.score(bad)
    for fpr in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="fpr"):
            fitted.threshold(fpr)
    with pytest.raises(InputError, match="batch_size"):
        replace(method, batch_size=0).fit(digits.model, data)
