"""Every property of a table is measured, or skipped with a reason; what the columns are is respected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn

from assay.audit import audit, robustness
from assay.audit.property import PROFILES, Context
from assay.audit.registry import properties
from assay.audit.suited import InUnits, suited
from assay.data.files import open_data
from assay.data.tabular import TabularData
from assay.data.text import text_data
from assay.nets import MLP
from assay.runtime.store import Store
from assay.subject import Access, Subject
from assay.training import Supervised


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small network on scikit-learn's wines: columns from 0.1 to 1,680, one of names, one of whole numbers."""
    folder, frame = tmp_path_factory.mktemp("wine"), load_wine(as_frame=True).frame
    frame["cellar"] = np.where(frame["alcohol"] > 13, "north", "south")
    frame = frame.sample(frac=1, random_state=0)
    frame[:90].to_csv(folder / "train.csv", index=False)
    frame[90:].to_csv(folder / "test.csv", index=False)
    marks = "#label=target&integer=proline&immutable=alcohol"
    train, test = (open_data(f"csv:{folder}/{name}.csv{marks}") for name in ("train", "test"))
    recipe = Supervised(epochs=15, batch_size=16, lr=1e-2)
    net = nn.Sequential(nn.BatchNorm1d(14), nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 3))
    return Subject(recipe.fit(net, train, seed=0), test, train, recipe=recipe, name="wine")


SKIPPED = {
    "corruption": "corrupts images",
    "robustness.decision": "alcohol, proline, cellar are immutable or integer",
    "adversarial_detection": "alcohol, proline, cellar are immutable or integer",
}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_property_is_measured_or_says_why_not(
    wine: Subject, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "QUERIES", (20, 20, 20))
    store = Store(tmp_path)
    found = audit(wine, profile=profile, limit=8, store=store)  # type: ignore[arg-type]
    for name, section in found.sections.items():
        if name in SKIPPED:
            assert SKIPPED[name] in (section.skipped or "")
        else:
            assert section.skipped is None, (name, section.skipped)
            assert section.metrics
    assert {"robustness.linf", "certified.linf", "ood", "privacy", "explanation", "cost"} <= {*found.sections}
    assert found["accuracy.top1"].value > 0.7


def test_without_gradients_a_table_is_attacked_by_scores(wine: Subject) -> None:
    black = replace(wine, access=Access.SCORE)
    both, search = (audit(s, only=["robustness"], limit=30) for s in (wine, black))
    for name in ("robustness.linf", "robustness.l2"):
        assert search.sections[name].skipped is None
    how = search["robustness.linf.accuracy@0.1"].how
    assert "a search of 200 queries for scores, 2 immutable and 2 integer of 14 columns kept so" in how
    assert "PGD" not in how
    assert "PGD-10" in both["robustness.linf.accuracy@0.1"].how
    curve = [search[f"robustness.linf.accuracy@{e}"].value for e in (0.02, 0.05, 0.1, 0.2)]
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < search["robustness.linf.noise@0.2"].value
    assert both["robustness.linf.accuracy@0.2"].value <= curve[-1]


def test_what_cannot_change_makes_a_model_robust(wine: Subject) -> None:
    every = tuple(range(14))
    assert isinstance(wine.test, TabularData)
    fixed = replace(wine, test=replace(wine.test, immutable=every))
    found = audit(fixed, only=["robustness.linf"], limit=20)
    assert (
        found["robustness.linf.accuracy@0.2"].value == audit(fixed, only=["accuracy"], limit=20)["accuracy.top1"].value
    )


def test_units_of_the_columns_change_no_answer(wine: Subject) -> None:
    given, notes = suited(properties()["certified.linf"], wine, Context())
    assert isinstance(given.model, InUnits)
    assert len(notes) == 1
    assert given.test.bounds == (0.0, 1.0)
    torch.testing.assert_close(given.model(given.test.x), wine.model(wine.test.x), rtol=1e-3, atol=1e-3)
    same, none = suited(properties()["accuracy"], wine, Context())
    assert same is wine
    assert none == []


def test_units_do_not_matter(wine: Subject) -> None:
    """A column in grams or in tonnes: the audit of the same model is the same."""

    class Tonnes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wine.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(torch.cat([x[:, :3] * 4096, x[:, 3:]], 1))

    def lighter(d: TabularData) -> TabularData:
        x, low = d.x.clone(), list(d.ranges)
        x[:, :3] /= 4096
        low[:3] = [(a / 4096, b / 4096) for a, b in low[:3]]
        return replace(d, x=x, ranges=tuple(low))

    assert isinstance(wine.test, TabularData)
    assert isinstance(wine.holdout, TabularData)
    other = replace(wine, model=Tonnes(), test=lighter(wine.test), holdout=lighter(wine.holdout), train=None)
    names = ["robustness.linf", "certified.l2", "hygiene"]
    a, b = (audit(replace(s, train=None), only=names, limit=20) for s in (wine, other))
    for name in ("robustness.linf.accuracy@0.1", "certified.l2.accuracy@0.25", "hygiene.near_duplicates.test"):
        assert a[name].value == pytest.approx(b[name].value, abs=0.051)


def test_texts_are_left_out_where_inputs_are_moved() -> None:
    texts = ["some words", "other words", "more", "less", "so few", "a text"] * 4
    data = text_data(texts, torch.arange(24) % 2, ("no", "yes"), "texts")
    found = audit(Subject(MLP(data.shape, 2), data), limit=12)
    for name in ("robustness.linf", "certified.l2", "ood", "explanation"):
        assert found.sections[name].skipped == "moves inputs by shares of their range; the samples are texts"
    assert found["accuracy.top1"].value is not None


def test_a_property_that_takes_fewer_samples_says_so(wine: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(properties()["labels"], most=30)
    given, notes = suited(few, wine, Context())
    assert len(given.test) == 30
    assert len(given.train or ()) == 30
    assert "30 random samples" in notes[0]
    assert "--limit" in notes[0]
