"""The property "ood"."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.audit.adversarial_detection import PROPERTY as ADVERSARIAL
from assay.audit.ood import PROPERTY
from assay.audit.property import Context, Property
from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.statistics import paired
from assay.subject import Access, Subject, fresh, load

NAMES = {
    f"ood.{o}.{d}.{m}"
    for o in ("photos", "shuffled")
    for d in ("mahalanobis", "knn", "energy", "msp")
    for m in ("auroc", "fpr95")
}


@pytest.fixture(scope="module")
def digits() -> Subject:
    return load("digits")


def test_names_intervals_and_values(digits: Subject) -> None:
    section = PROPERTY.measure(digits, Context())
    metrics = {m.name: m for m in section.metrics}
    assert set(metrics) == NAMES == set(section.samples)
    assert set(section.headline) <= NAMES
    for m in metrics.values():
        assert m.value is not None
        assert m.low is not None
        assert m.high is not None
        assert 0 <= m.low <= m.value <= m.high <= 1
        assert "digits:test" in m.how
    assert metrics["ood.photos.mahalanobis.auroc"].value > 0.95  # type: ignore[operator]
    assert metrics["ood.shuffled.mahalanobis.fpr95"].value < 0.2  # type: ignore[operator]
    assert all(0 <= severity <= 1 for severity, _ in section.findings)
    again = PROPERTY.measure(digits, Context())
    assert [m.value for m in again.metrics] == [m.value for m in section.metrics]


def test_another_model_pairs_with_this_one(digits: Subject) -> None:
    before = PROPERTY.measure(digits, Context(limit=200)).samples["ood.photos.msp.auroc"]
    other = digits.with_model(fresh(digits.model, seed=1))
    after = PROPERTY.measure(other, Context(limit=200)).samples["ood.photos.msp.auroc"]
    assert (before.index == after.index).all()
    assert len(np.unique(before.index)) == len(before.index) == 400
    assert (before.values[:, 1] == after.values[:, 1]).all()
    difference, low, high, _ = paired("auroc", before.values, after.values)
    assert low < difference < high
    assert difference != 0


def test_features_are_not_read_without_weights_or_training_data(digits: Subject) -> None:
    for less, words in (
        (replace(digits, access=Access.SCORE), "WEIGHTS"),
        (replace(digits, train=None), "training data"),
    ):
        section = PROPERTY.measure(less, Context(limit=50))
        assert {m.name for m in section.metrics} == {n for n in NAMES if "mahalanobis" not in n and "knn" not in n}
        assert any(words in note for note in section.notes)


@pytest.mark.parametrize("prop", [PROPERTY, ADVERSARIAL])
def test_a_detector_that_cannot_be_fitted_is_left_out_alone(prop: Property) -> None:
    data = load_data("digits")
    subject = Subject(MLP((1, 8, 8), 10, (4,)).eval(), data[:20], train=data[20:22], holdout=data[30:50])
    section = prop.measure(subject, Context(limit=8))
    assert any(n.startswith("Mahalanobis left out: 2 samples of") for n in section.notes)
    names = " ".join(m.name for m in section.metrics)
    assert "knn" in names
    assert "mahalanobis" not in names


def test_inputs_that_are_no_images() -> None:
    x = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    data = Data(x, (x[:, 0] > 0.5).long(), ("a", "b"))
    section = PROPERTY.measure(Subject(MLP((6,), 2), data, data), Context())
    assert {m.name for m in section.metrics} == {n for n in NAMES if "shuffled" in n}
    assert "Photographs left out" in section.notes[0]


def test_cost_counts_every_forward_pass(digits: Subject) -> None:
    seen: list[int] = []
    handle = digits.model.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    PROPERTY.measure(digits, Context())
    handle.remove()
    planned = PROPERTY.cost(digits, Context()).forward
    assert 0.9 < sum(seen) / planned < 1.1
