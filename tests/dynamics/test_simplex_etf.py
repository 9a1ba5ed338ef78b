"""Frames, the fixed classifier and dot regression: closed forms, and what training may not touch."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.data import load_data
from assay.dynamics import ETFClassifier, ETFNetwork, FixedETF, attach_etf, head_inputs, neural_collapse, simplex_etf
from assay.losses import DotRegressionLoss
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject
from assay.subject.load import load
from assay.subject.subject import fresh


def network(seed: int = 0) -> MLP:
    with seeded(seed, "test"):
        return MLP(hidden=(24,))


@given(k=st.integers(2, 40), extra=st.integers(0, 30), scale=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_gram_matrix_of_a_frame(k: int, extra: int, scale: float, seed: int) -> None:
    rows = simplex_etf(k, k - 1 + extra, scale=scale, seed=seed)
    gram = (torch.eye(k, dtype=torch.float64) - 1 / k) * k / (k - 1)
    assert rows.shape == (k, k - 1 + extra)
    assert float((rows @ rows.T / scale**2 - gram).abs().max()) < 1e-12
    assert float(rows.sum(0).norm()) < 1e-10 * scale * k


def test_frames_follow_their_seed() -> None:
    state = torch.get_rng_state()
    assert torch.equal(simplex_etf(4, 6, seed=1), simplex_etf(4, 6, seed=1))
    assert not torch.allclose(simplex_etf(4, 6, seed=1), simplex_etf(4, 6, seed=2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("k", "d", "scale"), [(1, 3, 1.0), (5, 3, 1.0), (3, 3, 0.0), (3, 3, math.inf)])
def test_no_such_frame(k: int, d: int, scale: float) -> None:
    with pytest.raises(InputError, match="expected"):
        simplex_etf(k, d, scale=scale)


def test_logits_are_scaled_cosines() -> None:
    classifier = ETFClassifier(6, 4, e_w=4.0, e_h=9.0, seed=3)
    h = 5 * torch.randn(20, 6, generator=torch_rng(0, "h"))
    rows = simplex_etf(4, 6, seed=3).float()
    cos = torch.nn.functional.cosine_similarity(h[:, None], rows[None], dim=2)
    torch.testing.assert_close(classifier(h), 6 * cos)
    torch.testing.assert_close(classifier(rows).diagonal(), torch.full((4,), 6.0))
    assert not [p for p in classifier.parameters() if p.requires_grad]
    assert torch.isfinite(classifier(torch.zeros(1, 6))).all()


def test_a_client_keeps_directions_and_gives_away_the_share_of_missing_classes() -> None:
    plain, client = ETFClassifier(5, 4), ETFClassifier(5, 4, client_counts=(6, 0, 2, 0))
    ratio = client.frame.weight.norm(dim=1) / plain.frame.weight.norm(dim=1)
    torch.testing.assert_close(ratio, torch.tensor([3.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(client.frame.weight[0], 3 * plain.frame.weight[0])
    torch.testing.assert_close(ETFClassifier(5, 4, client_counts=(9,) * 4).frame.weight, plain.frame.weight)
    for counts in ((1, 2, 3), (0, 0, 0, 0), (1, -1, 1, 1)):
        with pytest.raises(InputError, match="client_counts"):
            ETFClassifier(5, 4, client_counts=counts)


def test_dot_regression_is_a_closed_form_and_only_pulls() -> None:
    classifier, loss = ETFClassifier(6, 4, e_w=4.0, e_h=9.0), DotRegressionLoss(4.0, 9.0, "none")
    h, y = torch.randn(30, 6, generator=torch_rng(1, "h")), torch.arange(30) % 4
    cos = classifier(h).gather(1, y[:, None])[:, 0] / 6
    torch.testing.assert_close(loss(classifier(h), y), 6 * (1 - cos) ** 2 / 2)
    logits = classifier(h).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, y).sum(), logits)
    others = torch.ones(30, 4, dtype=torch.bool).scatter_(1, y[:, None], value=False)
    assert not gradient[others].any()
    assert (gradient[~others] <= 1e-6).all()
    for bad in ({"e_w": 0.0}, {"e_h": math.nan}):
        with pytest.raises(InputError, match="e_w"):
            DotRegressionLoss(**bad)


def test_attached_classifier_leaves_the_model_and_is_a_head() -> None:
    model, x = network(), load_data("digits:test").x[:30]
    kept = copy.deepcopy(model.state_dict())
    other = attach_etf(model, "head", e_h=4.0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), kept.values(), strict=True))
    fed, head = head_inputs(other, x)
    torch.testing.assert_close(fed.norm(dim=1), torch.full((30,), 2.0))
    y = torch.arange(30) % 10
    found = neural_collapse(fed, y, head.weight, head.bias)
    assert max(found.head_norms, found.head_angles, found.head_gram) < 1e-6
    for layer in ("", "tail", "body.0"):
        with pytest.raises(InputError):
            attach_etf(model, layer)
    with pytest.raises(InputError, match="dim"):
        attach_etf(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 10)), "2")


def test_attached_classifier_has_the_models_type_and_leaves_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    model[1].eval()
    other = attach_etf(model, "2")
    assert other(torch.randn(5, 4, dtype=torch.float64)).dtype == torch.float64
    assert [m.training for m in other.model] == [True, False, True]
    assert other.training
    assert not attach_etf(model.eval(), "2").training


@pytest.mark.parametrize("loss", ["dot-regression", "cross-entropy"])
def test_training_moves_all_but_the_frame(loss: str) -> None:
    data = load_data("digits:train").limit(200)
    method = FixedETF(loss=loss, epochs=1, e_h=9.0, weight_decay=0.1)
    trained = method.fit(network(), data, seed=4)
    rows = simplex_etf(10, 24, seed=4).float()
    assert isinstance(trained, ETFNetwork)
    torch.testing.assert_close(trained.model.head.frame.weight, rows)
    assert not torch.equal(trained.model.body[1].weight, network().body[1].weight)
    again = method.fit(trained, data, seed=5)  # goes on with the frame that it has
    torch.testing.assert_close(again.model.head.frame.weight, rows)


def test_a_free_feature_reaches_its_row_under_dot_regression() -> None:
    classifier, loss = ETFClassifier(5, 4), DotRegressionLoss()
    h = torch.randn(4, 5, generator=torch_rng(2, "h")).requires_grad_()
    optimizer = torch.optim.SGD([h], 2.0)
    for _ in range(400):
        optimizer.zero_grad()
        loss(classifier(h), torch.arange(4)).backward()
        optimizer.step()
    torch.testing.assert_close(classifier(h).diagonal(), torch.ones(4), atol=2e-2, rtol=0)  # quartic in the angle


def test_saved_loaded_and_made_fresh(tmp_path: Path) -> None:
    data, model = load_data("digits:test"), attach_etf(network(), "head", e_w=2.0, seed=7)
    again = load(Subject(model, data).save(tmp_path / "subject")).model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    other = fresh(model, seed=1)
    assert torch.equal(other.model.head.frame.weight, model.model.head.frame.weight)
    assert not torch.equal(other.model.body[1].weight, model.model.body[1].weight)


def test_bad_options() -> None:
    with pytest.raises(InputError, match="loss"):
        FixedETF(loss="hinge")
    with pytest.raises(InputError, match="e_h"):
        FixedETF(e_h=0.0)
    with pytest.raises(InputError, match="linear head"):
        FixedETF(epochs=1).fit(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)), load_data("digits"), seed=0
        )
