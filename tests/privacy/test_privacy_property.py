"""The property "privacy"."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.audit.privacy import PROPERTY, _chosen
from assay.audit.property import Context, Section
from assay.data import load_data
from assay.nets import MLP
from assay.runtime.random import seeded
from assay.subject import Subject, load
from assay.training import Supervised


@pytest.fixture(scope="module")
def leaky() -> Subject:
    """An MLP that knows 150 digits by heart, a third of them with wrong labels."""
    train, test = load_data("digits:train")[:150], load_data("digits:test")
    rng = torch.Generator().manual_seed(0)
    wrong = torch.rand(150, generator=rng) < 0.33
    train = train.with_y(torch.where(wrong, torch.randint(10, (150,), generator=rng), train.y))
    recipe = Supervised(epochs=80, batch_size=32, lr=1e-2)
    with seeded(0, "init"):
        model = MLP()
    return Subject(recipe.fit(model, train, seed=0), test, train, recipe=recipe, name="leaky")


def names(section: Section) -> set[str]:
    return {m.name for m in section.metrics}


def expected(*attacks: str) -> set[str]:
    parts = ("auc", "tpr@0.01", "tpr@0.001")
    return {f"privacy.mia.{a}.{p}" for a in attacks for p in parts} | {"privacy.generalisation_gap"}


def test_quick_on_digits_and_the_same_again() -> None:
    subject = load("digits")
    section = PROPERTY.measure(subject, Context())
    assert names(section) == expected("loss", "calibrated")
    metrics = {m.name: m for m in section.metrics}
    assert metrics["privacy.mia.loss.tpr@0.01"].value is None
    assert "not resolved" in metrics["privacy.mia.loss.tpr@0.01"].how
    gap = metrics["privacy.generalisation_gap"]
    assert gap.low < gap.value < gap.high  # type: ignore[operator]
    index = section.samples["privacy.mia.loss.auc"].index
    assert len(np.unique(index)) == len(index) == 2 * len(subject.test)
    again = PROPERTY.measure(subject, Context())
    assert [m.value for m in again.metrics] == [m.value for m in section.metrics]


def test_a_model_that_learned_by_heart_is_found_out(leaky: Subject) -> None:
    section = PROPERTY.measure(leaky, Context())
    metrics = {m.name: m for m in section.metrics}
    for attack in ("loss", "calibrated"):
        assert metrics[f"privacy.mia.{attack}.auc"].low > 0.6  # type: ignore[operator]
    assert metrics["privacy.generalisation_gap"].low > 0.1  # type: ignore[operator]
    assert max(section.findings)[0] > 0.3


@pytest.mark.parametrize(("profile", "online"), [("standard", False), ("deep", True)])
def test_shadow_models_join_the_longer_profiles(profile: str, online: bool, leaky: Subject) -> None:
    section = PROPERTY.measure(leaky, Context(profile=profile))  # type: ignore[arg-type]
    assert names(section) == expected("loss", "calibrated", "reference", "lira", "rmia")
    metrics = {m.name: m for m in section.metrics}
    assert metrics["privacy.mia.lira.auc"].low > 0.6  # type: ignore[operator]
    assert metrics["privacy.mia.rmia.auc"].low > 0.6  # type: ignore[operator]
    assert f"online={online}" in metrics["privacy.mia.lira.auc"].how
    assert set(section.plots[0].series) == {"loss", "calibrated", "reference", "lira", "rmia"}


def test_without_a_recipe_there_are_no_shadow_models(leaky: Subject) -> None:
    section = PROPERTY.measure(replace(leaky, recipe=None), Context(profile="standard"))
    assert names(section) == expected("loss", "calibrated")
    assert "no recipe" in section.notes[0]


def test_members_stay_chosen_when_others_leave() -> None:
    train = load_data("digits:train")
    before = _chosen(train, 100, 0).index
    gone = torch.cat((before[:10], train.index[:300]))
    after = _chosen(train.without(gone), 100, 0).index
    kept = before[~torch.isin(before, gone)]
    assert torch.isin(kept, after).all()
    assert not before.equal(_chosen(train, 100, 1).index)


def test_needs_and_cost(leaky: Subject) -> None:
    assert "training data" in (PROPERTY.missing(replace(leaky, train=None)) or "")
    assert PROPERTY.cost(leaky, Context()).trainings == 0
    assert PROPERTY.cost(leaky, Context(profile="standard")).trainings == pytest.approx(8)
