"""Deletion and insertion: closed forms on models whose probability is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.audit.explanation import PROPERTY, measure
from assay.audit.property import Context
from assay.data import Data, load_data
from assay.explain import deletion, insertion
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised


class Share(nn.Module):
    """Class 0 has as probability the weighted share of the pixels that are 1 (weights sum to 1)."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = (x[:, 0].flatten(1) @ self.weights).clamp(1e-9, 1 - 1e-9)
        return torch.stack([p.log(), (1 - p).log()], 1)


WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
X = torch.ones(1, 2, 2, 2, dtype=torch.float64)
ZERO = torch.zeros(1, dtype=torch.int64)


def ranking(values: list[float]) -> torch.Tensor:
    """An attribution whose channel sum is ``values``; either channel alone would rank otherwise."""
    a = torch.tensor(values, dtype=torch.float64).reshape(1, 2, 2)
    noise = torch.tensor([5.0, -3.0, 9.0, -7.0], dtype=torch.float64).reshape(1, 2, 2)
    return torch.stack([a + noise, -noise], 1)


def test_curves_and_areas_of_the_share_model() -> None:
    best = deletion(Share(WEIGHTS), X, ZERO, ranking([4, 3, 2, 1]), steps=4)
    assert torch.allclose(best.fraction, torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64))
    assert torch.allclose(best.score[0], torch.tensor([1, 0.6, 0.3, 0.1, 0], dtype=torch.float64), atol=1e-6)
    assert float(best.auc[0]) == pytest.approx((0.5 + 0.6 + 0.3 + 0.1) / 4, abs=1e-6)
    worst = deletion(Share(WEIGHTS), X, ZERO, ranking([1, 2, 3, 4]), steps=4)
    assert float(worst.auc[0]) == pytest.approx((0.5 + 0.9 + 0.7 + 0.4) / 4, abs=1e-6)
    put = insertion(Share(WEIGHTS), X, ZERO, ranking([4, 3, 2, 1]), steps=4)
    assert torch.allclose(put.score[0], torch.tensor([0, 0.4, 0.7, 0.9, 1], dtype=torch.float64), atol=1e-6)


def test_deleting_in_one_order_is_inserting_in_the_other() -> None:
    x = torch.rand(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    a = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 3))
    y = torch.arange(6) % 3
    gone, back = deletion(model, x, y, a, steps=5), insertion(model, x, y, -a, steps=5)
    assert torch.allclose(gone.score, back.score.flip(1), atol=1e-6)


def test_batches_steps_and_baselines() -> None:
    x = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model, y = MLP((1, 4, 4), 3), torch.arange(7) % 3
    a = deletion(model, x, y, x, steps=6, batch_size=5)
    b = deletion(model, x, y, x, steps=6, batch_size=1000)
    assert torch.allclose(a.score, b.score, atol=1e-6)
    assert a.score.shape == (7, 7)
    assert len(deletion(model, x, y, x, steps=99).fraction) == 17
    same = deletion(model, x, y, x, baseline=x)
    assert torch.allclose(same.score, same.score[:, :1].expand_as(same.score))
    flat = deletion(nn.Linear(16, 3), x.flatten(1), y, x.flatten(1), steps=6)
    assert flat.score.shape == (7, 7)


def test_bad_input() -> None:
    model, y = Share(WEIGHTS), ZERO
    for kwargs in (
        {"attribution": X[:, :1]},
        {"attribution": X * float("nan")},
        {"steps": 0},
        {"batch_size": 0},
        {"baseline": torch.zeros(3)},
        {"baseline": float("inf")},
        {"target": ZERO + 2},
    ):
        options = {"target": y, "attribution": X, **kwargs}
        with pytest.raises(InputError):
            deletion(model, X, options.pop("target"), options.pop("attribution"), **options)  # type: ignore[arg-type]


def test_the_property_ranks_real_attributions_above_chance() -> None:
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(0, "init"):
        model = MLP(hidden=(32,))
    subject = Subject(Supervised(epochs=6).fit(model, train, seed=0), test, train)
    section = measure(subject, Context())
    values = {m.name: m.value for m in section.metrics}
    assert len(values) == 10
    for method in ("gradient", "gradient_input", "integrated_gradients", "smooth_grad"):
        assert values[f"explanation.deletion.{method}"] < values["explanation.deletion.random"] - 0.05
        assert values[f"explanation.insertion.{method}"] > values["explanation.insertion.random"] + 0.05
    assert all(s == 0 for s, _ in section.findings)
    assert {m.n for m in section.metrics} == {64}
    assert PROPERTY.missing(subject) is None


def test_the_property_says_when_nothing_beats_chance() -> None:
    """A model that does not look at its input explains nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(model[1].weight)
    data = Data(torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 3, tuple("abc"))
    section = measure(Subject(model, data), Context(limit=30))
    assert all(s == 0.5 and "no more faithful" in text for s, text in section.findings)
    assert {m.n for m in section.metrics} == {30}
