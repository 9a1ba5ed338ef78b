"""The curriculum: soft labels, pacing, and what a given confidence does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from assay.adapt import ConfidenceCurriculum, smooth_labels
from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State


def _data(confidence: torch.Tensor | None = None) -> Data:
    data = load_data("digits:train").limit(200)
    return data if confidence is None else replace(data, fields={"confidence": confidence})


def test_soft_labels() -> None:
    found = smooth_labels(torch.tensor([0, 2]), torch.tensor([1.0, 0.4]), 3)
    assert found.tolist() == [[1, 0, 0], [pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.4)]]
    assert smooth_labels(torch.tensor([0, 2]), torch.tensor([1, 1]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]
    for y, p, c in ((torch.tensor([0]), torch.tensor([1.2]), 3), (torch.tensor([3]), torch.tensor([0.5]), 3)):
        with pytest.raises(InputError, match="expected"):
            smooth_labels(y, p, c)


def test_pacing_begins_with_a_share_and_ends_with_all() -> None:
    p = torch.linspace(0, 1, 200)
    method = ConfidenceCurriculum(epochs=20, batch_size=50, until=0.5, start=0.75)
    state = State(0, _data(p), 80)
    shares = []
    for epoch in (0, 5, 10, 19):
        state.epoch = epoch
        shares.append(float(method.keep(p, state).float().mean()))
    assert shares[0] == pytest.approx(0.75, abs=0.01)
    assert shares[1] == pytest.approx(1 - 0.25 / 2, abs=0.01)
    assert shares[2] == shares[3] == 1.0


def test_full_confidence_is_plain_training() -> None:
    data = _data(torch.ones(200))
    with seeded(0, "init"):
        start = MLP(data.shape, 10, (16,))
    method = ConfidenceCurriculum(epochs=2)
    a, b = method.fit(start, data, seed=3), method.plain().fit(start, data, seed=3)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_the_loss_sees_kept_samples_with_soft_labels() -> None:
    data = _data(torch.linspace(0.1, 1, 200))
    model, batch = MLP(data.shape, 10, (8,)), data.batch(torch.arange(0, 200, 5))
    method = ConfidenceCurriculum(epochs=4)
    p = batch.fields["confidence"]
    kept = p >= torch.quantile(data.fields["confidence"], 0.25)
    soft = smooth_labels(batch.y, p, 10)[kept]
    found = method.objective(model, batch, State(0, data, 40))
    assert torch.allclose(found, F.cross_entropy(model(batch.x[kept]), soft), atol=1e-6)


def test_bad_input() -> None:
    model = MLP()
    with pytest.raises(InputError, match="expected"):
        ConfidenceCurriculum(start=0.0)
    with pytest.raises(InputError, match="expected"):
        ConfidenceCurriculum(until=2.0)
    with pytest.raises(InputError, match="expected"):
        ConfidenceCurriculum(epochs=1).fit(model, _data(torch.full((200,), 2.0)), seed=0)
