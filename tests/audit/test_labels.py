"""Planted wrong labels in the test set are found and shown."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.audit import labels
from assay.audit.property import Context, Section
from assay.data import load_data
from assay.nets import MLP
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised


@pytest.fixture(scope="module")
def subject():
    train, test = load_data("digits:train"), load_data("digits:test")[:300]
    wrong = torch.arange(300) < 30
    test = test.with_y(torch.where(wrong, (test.y + 1) % 10, test.y))
    recipe = Supervised(epochs=15)
    with seeded(0, "init"):
        model = MLP()
    return Subject(recipe.fit(model, train, seed=0), test, train[:300], train[:50], recipe)


def test_planted_errors_are_found(subject):
    section = labels.measure(subject, Context())
    got = {m.name: m for m in section.metrics}
    rate = got["labels.error_rate"]
    assert abs(rate.value - 0.1) < 0.04
    assert rate.low <= rate.value <= rate.high
    found = {row["index"] for row in section.tables["suspects"]}
    planted = set(subject.test.index[:30].tolist())
    assert got["labels.suspects"].value == len(found)
    assert len(found & planted) >= 24
    assert len(found - planted) <= 8
    images = next(p for p in section.plots if p.kind == "images").series[""]
    assert len(images["images"]) == len(images["captions"]) <= 24
    assert " -> " in images["captions"][0]
    assert "labels.train.error_rate" not in got
    assert Section.from_arrays(section.to_arrays()).to_dict() == section.to_dict()


def test_training_set_from_standard_on(subject):
    section = labels.measure(subject, Context(profile="standard"))
    assert {m.name: m for m in section.metrics}["labels.train.error_rate"].value < 0.1
    bare = labels.measure(replace(subject, recipe=None), Context(profile="standard"))
    assert any("recipe" in n for n in bare.notes)


def test_clean_labels_have_an_error_rate_of_exactly_zero():
    y = np.arange(60) % 7
    rate = labels.error_rate("rate", y, np.eye(7)[y] * 0.9 + 0.1 / 7, how="", seed=0)
    assert (rate.value, rate.low, rate.high) == (0.0, 0.0, 0.0)
