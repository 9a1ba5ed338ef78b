"""Hyp-OC's parts against their definitions, the one-class SVM, and the rates of attack detection."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM as Machine
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from assay.data import Batch, Data, load_data
from assay.detect import HypOC, OneClassSVM, eer_threshold, fas_metrics
from assay.detect.hyp_oc import FittedHypOC, HypOCHead
from assay.detect.one_class_svm import FittedOneClassSVM
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import features
from assay.runtime.random import seeded, torch_rng
from assay.training import State


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(200)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with seeded(0, "init"):
        return MLP(hidden=(16,))


def state(data: Data) -> State:
    return State(seed=0, data=data, total=10)


def test_the_mean_runs_over_the_whole_training(data: Data) -> None:
    s, method = state(data), HypOC(alpha=0.8)
    batches = torch.rand(3, 4, 2, generator=torch_rng(0, "f"))
    expected = batches[0].mean(0)
    torch.testing.assert_close(method.mean(batches[0], s), expected)
    for k, f in enumerate(batches[1:]):
        s.epoch = k  # epochs make no difference
        expected = 0.8 * expected + 0.2 * f.mean(0)
        torch.testing.assert_close(method.mean(f, s), expected)


def test_the_official_mean_is_of_two_batches_and_starts_at_zero(data: Data) -> None:
    s, method = state(data), HypOC(alpha=0.8, reference_mean=True)
    a, b, c = torch.rand(3, 4, 2, generator=torch_rng(0, "f"))
    torch.testing.assert_close(method.mean(a, s), 0.2 * a.mean(0))
    torch.testing.assert_close(method.mean(b, s), 0.8 * a.mean(0) + 0.2 * b.mean(0))
    s.epoch = 1
    torch.testing.assert_close(method.mean(c, s), 0.2 * c.mean(0))
    assert float(HypOC(centre="origin").mean(a, s).abs().max()) == 0.0


def test_no_gradient_reaches_the_mean_and_real_is_class_0(data: Data) -> None:
    method = HypOC(confusion=0.0, hidden=(4,), embed_dim=3)
    with seeded(0, "head"):
        head = HypOCHead(2, method)
    f = torch.rand(6, 2, generator=torch_rng(0, "f"), requires_grad=True)
    s = state(data)
    assert not method.mean(f, s).requires_grad
    batch = Batch(f, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    loss = method.objective(head, batch, s)
    noise = s.draws("pseudo", batch.index).normal(2)
    pseudo = s.memory["mean"] + noise
    both = torch.cat((head(f), head(pseudo))).log_softmax(1)
    torch.testing.assert_close(loss, -(both[:6, 0].sum() + both[6:, 1].sum()) / 12)


@pytest.mark.parametrize("geometry", ["hyperbolic", "euclidean"])
def test_training_tells_real_features_from_noise_around_their_mean(geometry: str, model: nn.Module, data: Data) -> None:
    method = HypOC(geometry=geometry, epochs=15, hidden=(32,), embed_dim=8)  # type: ignore[arg-type]
    fitted, start = method.fit(model, data), replace(method, epochs=0).fit(model, data)
    assert isinstance(fitted, FittedHypOC)
    assert isinstance(start, FittedHypOC)
    f = features(model, data.x, [fitted.layer_])[fitted.layer_]
    noise = f.mean(0) + torch.randn(f.shape, generator=torch_rng(0, "noise"))
    label = np.repeat([0, 1], len(f))
    with torch.no_grad():
        auc = [roc_auc_score(label, torch.cat([d.of_features(z) for z in (f, noise)])) for d in (fitted, start)]
    assert auc[0] > 0.9
    assert auc[0] > auc[1]
    emb = fitted.embed(data.x[:20])
    assert emb.shape == (20, 8)
    if geometry == "hyperbolic":
        assert float(emb.norm(dim=1).max()) < math.sqrt(10)
    assert float(emb.norm(dim=1).max()) <= 2.0 + 1.0 * (geometry == "hyperbolic")


def test_options_change_what_is_learned(model: nn.Module, data: Data) -> None:
    base = HypOC(epochs=2, hidden=(8,), embed_dim=4)
    first = base.fit(model, data).score(data.x[:30])
    for change in ({"reference_mean": True}, {"reference_loss": True}, {"confusion": 0.0}, {"centre": "origin"}):
        assert not torch.allclose(replace(base, **change).fit(model, data).score(data.x[:30]), first)


def test_bad_options(model: nn.Module, data: Data) -> None:
    options: tuple[dict, ...] = (
        {"train_batch": 7},
        {"alpha": 1.5},
        {"noise_std": 0.0},
        {"c": 0.0},
        {"geometry": "flat"},
        {"centre": "median"},
    )
    for bad in options:
        with pytest.raises(InputError):
            HypOC(**bad)
    with pytest.raises(InputError, match="at least 2"):
        HypOC().fit(model, data[:1])


def test_one_class_svm_is_scikit_learns(model: nn.Module, data: Data) -> None:
    fitted = OneClassSVM(gamma=1.0, nu=0.2).fit(model, data)
    layer = fitted.layer_  # type: ignore[attr-defined]
    f, probe = (features(model, x, [layer])[layer].double().numpy() for x in (data.x, load_data("digits:test").x[:30]))
    expected = -Machine(nu=0.2, gamma="scale").fit(f).decision_function(probe)
    np.testing.assert_allclose(fitted.score(load_data("digits:test").x[:30]).numpy(), expected, atol=1e-9)
    for bad in ({"nu": 0.0}, {"gamma": -1.0}):
        with pytest.raises(InputError, match="OneClassSVM"):
            OneClassSVM(**bad).fit(model, data)


def test_rates_by_hand() -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.8, 0.25, 0.7, 0.9, 0.95])
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = fas_metrics(scores, y, 0.5)
    assert found["apcer"] == 0.25
    assert found["bpcer"] == 0.25
    assert found["acer"] == found["hter"] == 0.25
    assert found["auc"] == pytest.approx(roc_auc_score(y, scores))
    threshold = eer_threshold(scores, y)
    assert 0.3 <= threshold < 0.7
    assert found["eer"] == 0.25
    strict = fas_metrics(scores, y, 0.0)
    assert (strict["apcer"], strict["bpcer"]) == (0.0, 1.0)
    for bad in (y * 0, y + 1):
        with pytest.raises(InputError, match="0 and 1"):
            fas_metrics(scores, bad, 0.5)


def test_validation_threshold_of_a_fitted_detector(model: nn.Module, data: Data) -> None:
    fitted = HypOC(epochs=1, hidden=(8,), embed_dim=4).fit(model, data)
    assert isinstance(fitted, FittedHypOC)
    x, y = torch.cat((data.x[:20], 1 - data.x[20:40])), torch.arange(40) // 20
    assert fitted.eer(x, y) == eer_threshold(fitted.score(x), y)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, out.numel()) if isinstance(out, torch.Tensor) else self.numel
        return out


def test_the_machine_lays_out_no_more_than_its_kernel() -> None:
    g = torch.Generator().manual_seed(0)
    f, support, weight = torch.randn(20, 64, generator=g), torch.randn(30, 64, generator=g).double(), torch.rand(30)
    machine = FittedOneClassSVM(
        model=nn.Identity(), shape=(64,), bounds=(0.0, 1.0), support_=support, weight_=weight.double(), gamma_=0.01
    )
    with Largest() as seen:
        found = machine.of_features(f)
    assert seen.numel <= 30 * 64
    square = (f.double()[:, None] - support).square().sum(2)
    assert torch.allclose(found, -(-0.01 * square).exp() @ weight.double(), atol=1e-12)
