"""Unlearning numbers: the terms of the blindspot loss, the drawn targets, and the measures by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import State, Trainer
from assay.unlearn import (
    BlindspotUnlearn,
    GaussianAmnesiac,
    anamnesis_index,
    attack_probability,
    attention_distance,
    prediction_wasserstein,
    regression_unlearning_report,
)
from assay.unlearn.blindspot import activations
from assay.unlearn.regression import distance, relearn_batches


class Level(Trainer):
    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return (model(batch.x)[:, 0] - batch.fields["target"]).abs().mean()


def level(part: str, n: int) -> Data:
    data = load_data(f"digits:{part}").limit(n)
    return replace(data, fields={"target": data.x.mean((1, 2, 3)) * 20})


@pytest.fixture(scope="module")
def subject() -> Subject:
    with seeded(0, "test"):
        model = SmallCNN(classes=1, widths=(4, 8), hidden=16)
    recipe = Level(epochs=4)
    train = level("train", 200)
    return Subject(recipe.fit(model, train, seed=0), level("test", 150), train, recipe=recipe, task="regression")


def test_attention_is_the_formula_and_knows_no_scale() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 5, 2, 4, generator=g) for _ in range(2))
    total = 0.0
    for i in range(3):
        p, q = ((m[i] ** 2).mean(0).flatten().numpy() for m in (a, b))
        total += float(((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum())
    assert float(attention_distance(a, b)) == pytest.approx(total / 24, rel=1e-5)
    assert float(attention_distance(a, a)) == 0
    assert float(attention_distance(5 * a, 0.1 * b)) == pytest.approx(total / 24, rel=1e-4)
    assert float(attention_distance(torch.zeros_like(a), torch.zeros_like(a))) == 0
    for bad in (b[:, :, :1], torch.zeros(3, 5)):
        with pytest.raises(InputError, match="one shape"):
            attention_distance(a, bad)


def test_activations_are_maps_in_order_and_leave_no_hook(subject: Subject) -> None:
    x = subject.test.x[:2]
    with activations(subject.model, None) as found:
        subject.model(x)
    assert [tuple(m.shape[1:2]) for m in found] == [(4,), (8,)]
    with activations(subject.model, ("body.0",)) as named:
        subject.model(x)
    assert torch.equal(named[0].relu(), found[0])
    assert not any(m._forward_hooks for m in subject.model.modules())
    with pytest.raises(InputError, match="no layer 'head\\.9'"), activations(subject.model, ("head.9",)):
        pass


def test_the_blend_by_hand(subject: Subject) -> None:
    data, method = subject.test, BlindspotUnlearn(at_beta=0.0)
    batch = data.batch(torch.arange(8))
    with seeded(1, "proxy"):
        proxy = SmallCNN(classes=1, widths=(4, 8), hidden=16)
    u = torch.arange(8) < 3
    with torch.no_grad():
        own, other = subject.model(batch.x)[:, 0], proxy(batch.x)[:, 0]
        expected = 3 / 8 * (own - other)[u].abs().mean() + 5 / 8 * (own - batch.fields["target"])[~u].abs().mean()
        assert float(method.blend(subject.model, proxy, batch, u, 3 / 8)) == pytest.approx(float(expected), rel=1e-5)
        heavy = BlindspotUnlearn().blend(subject.model, proxy, batch, u, 3 / 8)
        assert float(heavy) > float(expected)
        assert float(BlindspotUnlearn().blend(subject.model, subject.model, batch, u | True, 1.0)) == 0


def test_the_proxy_sees_what_is_retained_alone(subject: Subject) -> None:
    train, method = subject.training("the test"), BlindspotUnlearn(batch_size=64)
    spoiled = replace(train, fields={"target": train.fields["target"] + 100 * (torch.arange(len(train)) < 50)})
    models = [method.proxy(subject.with_model(subject.model, train=t), t[50:], seed=3) for t in (train, spoiled)]
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
    made: list[int] = []

    def factory(seed: int) -> nn.Module:
        made.append(seed)
        return SmallCNN(classes=1, widths=(4, 8), hidden=16)

    replace(method, reinit=factory).proxy(subject, train[50:], seed=3)
    assert len(made) == 1


def test_without_maps_there_is_no_attention_term(subject: Subject) -> None:
    train = subject.training("the test")
    flat = subject.with_model(MLP(classes=1, hidden=(8,)))
    method = BlindspotUnlearn(batch_size=64)
    with pytest.warns(RuntimeWarning, match="no attention term"):
        found = method.forget(flat, train[:50], train[50:], seed=0)
    plain = replace(method, at_beta=0.0).forget(flat, train[:50], train[50:], seed=0)
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), plain.parameters(), strict=True))


def test_the_drawn_targets_are_those_of_all_training_targets(subject: Subject) -> None:
    n = 4000
    x, index = torch.zeros(n, 1, 8, 8), torch.arange(n)
    target = torch.stack([torch.linspace(-3, 5, n), torch.linspace(10, 0, n)], 1)
    data = Data(x, torch.zeros(n, dtype=torch.int64), ("a", "b"), index=index, fields={"target": target})
    drawn = GaussianAmnesiac().drawn(data, data[: n // 2], seed=2)
    assert drawn.shape == (n // 2, 2)
    assert torch.allclose(drawn.mean(0), target.mean(0), atol=0.2)
    assert torch.allclose(drawn.std(0), target.std(0), rtol=0.06)
    assert torch.equal(GaussianAmnesiac().drawn(data, data[:9], seed=2), drawn[:9])
    assert drawn[:, 1].min() < 0


def test_wasserstein_is_scipys() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(40, generator=g), torch.randn(70, generator=g) + 1
    assert prediction_wasserstein(a, b) == pytest.approx(wasserstein_distance(a.numpy(), b.numpy()))
    assert prediction_wasserstein(a, a + 3) == pytest.approx(3, rel=1e-5)
    with pytest.raises(InputError, match="b has 0"):
        prediction_wasserstein(a, b[:0])


def test_relearning_counts_batches(subject: Subject) -> None:
    train, known = subject.training("the test"), subject.test
    with seeded(5, "other"):
        new = SmallCNN(classes=1, widths=(4, 8), hidden=16)
    options = {"lr": 0.01, "epochs": 1, "batch_size": 50, "seed": 0}
    assert relearn_batches(subject.model, train, known, 1e9, **options) == 1  # type: ignore[arg-type]
    assert relearn_batches(new, train, known, 0.0, **options) == 4  # type: ignore[arg-type]
    assert anamnesis_index(new, new, subject.model, train, known, max_epochs=2, batch_size=50) == 1
    with torch.no_grad():
        new.head.bias += 50
    options = {"lr": 1e-4, "max_epochs": 2, "batch_size": 50}
    assert anamnesis_index(subject.model, new, subject.model, train, known, **options) == 1 / 8  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_epochs=0"):
        anamnesis_index(new, new, new, train, known, max_epochs=0)


def test_the_report_by_hand(subject: Subject) -> None:
    train, test = subject.training("the test"), subject.test
    with seeded(5, "other"):
        gold = SmallCNN(classes=1, widths=(4, 8), hidden=16)
    report = regression_unlearning_report(subject.model, gold, train[:50], train[50:], test[:40], test[40:])
    with torch.no_grad():
        own, other = (m(train.x[:50])[:, 0] for m in (subject.model, gold))
    assert report["seen"] == pytest.approx(float((own - train.fields["target"][:50]).abs().mean()), rel=1e-5)
    assert report["w1"] == pytest.approx(wasserstein_distance(own.numpy(), other.numpy()), rel=1e-5)
    assert report["attack"] == attack_probability(subject.model, train[50:], test[40:], train[:50])
    assert 0 <= report["attack"] <= 1
    assert regression_unlearning_report(gold, gold, train[:50], train[50:], test[:40], test[40:])["w1"] == 0


def test_an_attack_tells_memorised_samples(subject: Subject) -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None] * 20

    exact = subject.training("the test")
    off = replace(subject.test, fields={"target": subject.test.fields["target"] + 5})
    assert attack_probability(Table(), exact[:100], off, exact[100:]) == 1
    assert attack_probability(Table(), exact[:100], off, off) == 0


def test_bad_options_and_outputs() -> None:
    for options in ({"proxy_epochs": 0}, {"proxy_lr": 0.0}, {"at_beta": -1.0}):
        with pytest.raises(InputError, match="proxy_epochs >= 1"):
            BlindspotUnlearn(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected the same"):
        distance(torch.zeros(3, 2), torch.zeros(3, 1))
    assert float(distance(torch.zeros(0, 1), torch.zeros(0, 1))) == 0


def test_indices_may_be_of_any_size(subject: Subject) -> None:
    train = subject.training("the test")
    far = replace(train, index=train.index * 10**12 - 10**13)
    found = [GaussianAmnesiac().control(replace(subject, train=d), d[:20], d[20:], seed=0) for d in (train, far)]
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in found), strict=True))
    moved = GaussianAmnesiac().forget(replace(subject, train=far), far[:20], far[20:], seed=0)
    assert all(torch.isfinite(p).all() for p in moved.parameters())
