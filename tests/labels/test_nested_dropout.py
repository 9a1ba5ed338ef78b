"""Nested dropout and co-teaching: masks, widths, prefixes in closed form, the exchange of samples."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.data import load_data
from assay.labels import (
    NestedClassifier,
    NestedCoTeaching,
    NestedDropout,
    noise_fit_curve,
    prefix_accuracy,
    prefix_logits,
    select_width,
)
from assay.nets import MLP
from assay.papers.nested_dropout import identities
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import State


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name))


def classifier(compress: nn.Module, width: int = 8) -> NestedClassifier:
    with seeded(0, "net"):
        return NestedClassifier(MLP((1, 8, 8), 2, (16, width)).body, compress, width, 10)


def test_identities() -> None:
    found = identities(0)
    assert found["prefix"] < 1e-5
    assert found["p_value"] > 1e-3
    assert found["full"] < 1e-7


def test_masks_are_prefixes_one_for_a_batch_or_one_a_sample() -> None:
    h = torch.ones(200, 12)
    for per in ("batch", "sample"):
        layer = NestedDropout(12, sigma=6.0, per=per)  # type: ignore[arg-type]
        with seeded(0, "mask"):
            out = layer(h)
        assert (out.diff(dim=1) <= 0).all()
        assert (out[:, 0] == 1).all()
        assert (len(out.unique(dim=0)) > 3) == (per == "sample")
    p = layer.probability
    assert float(p[3] / p[0]) == pytest.approx(math.exp(-(16 - 1) / 36))
    assert float(NestedDropout(500, sigma=0.02).probability[0]) == 1.0


def test_its_options_are_shown() -> None:
    layer = NestedDropout(6, 3.0)
    layer.width = 2
    assert repr(layer) == "NestedDropout(dim=6, sigma=3.0, per='batch', width=2)"


def test_evaluation_passes_everything_until_a_width_is_set_and_saves_it() -> None:
    layer, h = NestedDropout(6).eval(), draw("h", 4, 6)
    assert torch.equal(layer(h), h)
    layer.width = 2
    assert torch.equal(layer(h)[:, 2:], torch.zeros(4, 4))
    other = NestedDropout(6).eval()
    other.load_state_dict(layer.state_dict())
    assert other.width == 2
    layer.width = None
    assert torch.equal(layer(h), h)


def test_of_several_layers_one_is_masked_at_a_time() -> None:
    inner = NestedDropout(16, sigma=1.0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), inner, nn.Linear(16, 8))
    model = NestedClassifier(body, NestedDropout(8, sigma=1.0), 8, 10)
    seen = set()
    with seeded(0, "alternate"):
        for _ in range(20):
            model(torch.ones(2, 1, 8, 8))
            seen.add((inner.active, model.compress.active))
    assert seen == {(True, False), (False, True)}


def test_the_width_is_the_least_of_the_best() -> None:
    h = torch.eye(3).repeat(2, 1)
    weight = torch.eye(3)
    y = torch.tensor([0, 1, 0, 0, 1, 0])  # the third channel speaks for a class that is always wrong
    width, accuracy = select_width(h, weight, y)
    assert width == 2
    assert accuracy.tolist() == pytest.approx([4 / 6, 1.0, 4 / 6])
    assert select_width(h[:2], weight, y[:2])[0] == 2
    tied = select_width(h[:1], weight, y[:1])
    assert tied[0] == 1
    assert tied[1].tolist() == [1.0, 1.0, 1.0]
    shifted = prefix_accuracy(h, weight, y, torch.tensor([0.0, 0.0, 9.0]))
    assert shifted.tolist() == [0.0, 0.0, 0.0]


def test_narrowing_and_what_noise_is_held() -> None:
    data = load_data("digits:train").limit(120)
    model = classifier(NestedDropout(8))
    narrow = model.narrowed(data)
    assert isinstance(narrow.compress, NestedDropout)
    assert 1 <= narrow.compress.width <= 8  # type: ignore[operator]
    assert model.compress.width is None
    noisy = data.y.clone()
    noisy[:60] = (noisy[:60] + 1) % 10
    fit = noise_fit_curve(model, data.x, data.y, noisy)
    model.eval()
    model.compress.width = 3  # type: ignore[assignment]
    guess = model(data.x).argmax(1)
    assert fit.right[2] == pytest.approx(float((guess == data.y).float().mean()))
    assert fit.wrong[2] == pytest.approx(float((guess == noisy)[:60].float().mean()))
    assert np.isnan(noise_fit_curve(model, data.x, data.y, data.y).wrong).all()


def test_networks_learn_from_what_the_other_one_chose() -> None:
    data = load_data("digits:train").limit(10)
    with seeded(0, "pair"):
        models = {name: MLP(hidden=(8,)) for name in ("first", "second")}
    batch, state = data.batch(torch.arange(10)), State(0, data, 4)
    method = NestedCoTeaching(forget_rate=0.4)
    chosen = method.chosen(models, batch, state)
    assert set(chosen["first"].tolist()) < set(range(5))
    assert set(chosen["second"].tolist()) < set(range(5, 10))
    assert [len(rows) for rows in chosen.values()] == [3, 3]
    for name, model in models.items():
        half = range(5) if name == "first" else range(5, 10)
        losses = nn.functional.cross_entropy(model(batch.x), batch.y, reduction="none")
        assert losses[chosen[name]].max() <= min(losses[i] for i in half if i not in chosen[name].tolist())
    for name, other in (("first", "second"), ("second", "first")):
        rows = chosen[other]
        expected = nn.functional.cross_entropy(models[name](batch.x[rows]), batch.y[rows])
        assert torch.equal(method.loss(name, models, batch, state), expected)
    shared = NestedCoTeaching(forget_rate=0.4, split="shared").chosen(models, batch, state)
    assert [len(rows) for rows in shared.values()] == [6, 6]
    assert len(NestedCoTeaching(forget_rate=0.99).chosen(models, batch, state)["first"]) == 1


def test_a_last_batch_of_one_goes_to_both_networks() -> None:
    data = load_data("digits:train").limit(9)
    models = {name: MLP(hidden=(8,)) for name in ("first", "second")}
    batch, state = data.batch(torch.arange(8, 9)), State(0, data, 4)
    chosen = NestedCoTeaching().chosen(models, batch, state)
    assert [rows.tolist() for rows in chosen.values()] == [[0], [0]]
    NestedCoTeaching(epochs=1, batch_size=4).fit(models["first"], data, seed=0)


def test_both_networks_draw_the_same_width() -> None:
    data = load_data("digits:train").limit(8)
    model = classifier(NestedDropout(8, sigma=20.0))
    models, state = {"first": model, "second": copy.deepcopy(model)}, State(0, data, 4)
    method = NestedCoTeaching(forget_rate=0.0, split="shared")
    losses = {method.loss(name, models, data.batch(torch.arange(8)), state).item() for name in ("first", "second")}
    assert len(losses) == 1


def test_the_rate_rises_and_norms_are_frozen() -> None:
    assert [NestedCoTeaching(forget_rate=0.3, n_gradual=4).rate(e) for e in (0, 1, 3, 9)] == pytest.approx(
        [0, 0.1, 0.3, 0.3]
    )
    data = load_data("digits:train").limit(32)
    with seeded(0, "norm"):
        start = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    for frozen in (True, False):
        method = NestedCoTeaching(freeze_norm=frozen, epochs=1, batch_size=16)
        mean = method.fit(start, data, seed=0, partner=copy.deepcopy(start)).get_submodule("first.2")
        assert bool((mean.running_mean == 0).all()) == frozen


def test_bad_input() -> None:
    h, weight = draw("h", 4, 6), draw("w", 3, 6)
    data = load_data("digits:train").limit(1)
    for call in (
        lambda: NestedDropout(0),
        lambda: NestedDropout(4, sigma=0.0),
        lambda: NestedDropout(4)(h),
        lambda: NestedDropout(6)(h[:, :, None]),
        lambda: setattr(NestedDropout(4), "width", 5),
        lambda: setattr(NestedDropout(4), "width", 2.5),
        lambda: prefix_logits(h, weight, [2.7]),  # type: ignore[list-item]
        lambda: select_width(h[:0], weight, torch.zeros(0, dtype=torch.int64)),
        lambda: prefix_logits(h, weight[:, :2]),
        lambda: prefix_logits(h, weight, [7]),
        lambda: select_width(h, weight, torch.arange(4)),
        lambda: select_width(h, weight, torch.zeros(4, dtype=torch.int64), tie=-1.0),
        lambda: classifier(nn.Identity()).narrowed(data),
        lambda: NestedCoTeaching(forget_rate=1.0),
        lambda: NestedCoTeaching(n_gradual=-1),
        lambda: NestedCoTeaching(epochs=1).fit(MLP(), data, seed=0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    with pytest.raises(InputError, match="unknown"):
        NestedDropout(4, per="row")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown"):
        NestedCoTeaching(split="thirds")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="without bias"):
        NestedClassifier(nn.Flatten(), NestedDropout(64), 64, 10, bias=True)
