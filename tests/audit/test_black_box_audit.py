"""A model that gives scores, or decisions only, is audited in all that its access allows, and in nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.audit import audit, plan, robustness
from assay.audit.property import Context, Profile, Section
from assay.audit.registry import properties, select
from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.runtime.store import Store
from assay.subject import Access, Subject, from_callable
from assay.training.trainer import Supervised

DECIDED = {
    "accuracy", "subgroups", "robustness.decision", "corruption", "certified.l2", "privacy", "hygiene", "cost",
}  # fmt: skip
SCORED = DECIDED | {
    "calibration", "uncertainty", "robustness.linf", "robustness.l2", "ood", "labels", "explanation",
}  # fmt: skip


def images(n: int, stream: str) -> Data:
    """Bright and dark halves of 8x8 images tell three classes apart."""
    x = torch.rand(n, 1, 8, 8, generator=torch_rng(0, stream))
    y = torch.arange(n) % 3
    x[:, :, :, 2:] *= 0.5
    x[y == 1, :, :4] = x[y == 1, :, :4] * 0.4 + 0.6
    x[y == 2, :, 4:] = x[y == 2, :, 4:] * 0.4 + 0.6
    groups = {"groups": torch.arange(n) % 2}
    return Data(x, y, ("none", "top", "bottom"), fields=groups, name=stream)


def logits(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), 8, 8)
    top, bottom = flat[:, :4].mean((1, 2)), flat[:, 4:].mean((1, 2))
    return 30 * np.stack([np.full(len(x), 0.6), top, bottom], 1)


def shares(x: np.ndarray) -> np.ndarray:
    z = np.exp(logits(x) - logits(x).max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def scored() -> Subject:
    return watched(from_callable(logits, images(120, "test"), train=images(80, "train")))


@pytest.fixture(scope="module")
def decided() -> Subject:
    return watched(from_callable(lambda x: logits(x).argmax(1), images(120, "test"), train=images(80, "train")))


def watched(subject: Subject) -> Subject:
    """The subject, whose model may not be asked for a slope."""

    def refuse(_model: nn.Module, given: tuple[Tensor]) -> None:
        assert not given[0].requires_grad, "a gradient is asked for"

    subject.model.register_forward_pre_hook(refuse)
    return subject


def check(section: Section) -> None:
    """What a reader sees is whole: finite numbers inside their intervals, or the word that they are not resolved."""
    assert section.metrics
    for m in section.metrics:
        assert m.value is None or math.isfinite(m.value), m
        if m.value is not None and m.low is not None and m.high is not None and m.unit == "":
            assert m.low - 1e-9 <= m.value <= m.high + 1e-9, m
        assert "nan" not in m.how
        assert m.how
    names = {m.name for m in section.metrics}
    for text in (*section.notes, *(t for _, t in section.findings)):
        assert "nan" not in text.split()
    assert section.findings or section.notes or names
    assert Section.from_arrays(section.to_arrays()).to_dict() == section.to_dict()


@pytest.mark.parametrize("profile", ["quick", "standard", "deep"])
@pytest.mark.parametrize("kind", ["scored", "decided"])
def test_every_property_runs_or_says_why_not(
    profile: Profile, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every profile; Square's budget is cut, its rounds cost the same for each sample."""
    monkeypatch.setattr(robustness, "QUERIES", (30, 30, 30))
    subject, allowed = request.getfixturevalue(kind), SCORED if kind == "scored" else DECIDED
    only = [p.name for p in select(profile, None) if profile == "quick" or p.name != "cost"]
    found = audit(subject, profile=profile, only=only, limit=6)
    for name, section in found.sections.items():
        if name in allowed:
            assert section.skipped is None, (name, section.skipped)
            check(section)
        else:
            needed = properties()[name].needs.name
            assert section.skipped == f"needs {needed} access; the subject grants {subject.access.name}"


def test_a_recipe_does_not_open_a_black_box(scored: Subject) -> None:
    """Shadow models and folds train the recipe's own kind of model: there is none to start from."""
    with_recipe = replace(scored, recipe=Supervised(epochs=1))
    found = audit(with_recipe, profile="standard", only=["privacy", "labels"], limit=20)
    assert all(s.skipped is None for s in found.sections.values())
    assert not any("lira" in name or "train.error" in name for name in found.metrics)
    assert any("shadow models left out" in n for n in found.sections["privacy"].notes)


def test_square_finds_what_noise_does_not_and_says_that_it_searched(scored: Subject) -> None:
    section = properties()["robustness.linf"].measure(scored, Context(limit=30))
    got = {m.name: m for m in section.metrics}
    assert got["robustness.linf.accuracy@0.2"].how.startswith("Square, 200 queries for scores")
    assert got["robustness.linf.accuracy@0.2"].value < got["robustness.linf.noise@0.2"].value - 0.3
    assert any("upper bound" in n for n in section.notes)
    assert "Without gradients" in section.findings[0][1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_on_vectors(norm: str) -> None:
    """A linear rule falls where the exact distance says, and not before."""
    x = torch.rand(60, 12, generator=torch_rng(0, "vectors")) * 0.6 + 0.2
    weight = torch.linspace(0.5, 1.5, 12).numpy()
    y = torch.from_numpy((x.numpy() @ weight > 0.5 * weight.sum()).astype(np.int64))
    data = Data(x, y, ("a", "b"))
    subject = from_callable(lambda z: (z @ weight - 0.5 * weight.sum()) * 8, data, scores="logits")
    section = properties()[f"robustness.{norm}"].measure(subject, Context())
    for eps in (0.02, 0.05, 0.1) if norm == "linf" else (0.25, 0.5):
        distance = np.abs(subject.test.x.numpy() @ weight - 0.5 * weight.sum())
        exact = (distance / (np.abs(weight).sum() if norm == "linf" else np.linalg.norm(weight)) > eps).mean()
        found = {m.name: m.value for m in section.metrics}[f"robustness.{norm}.accuracy@{eps:g}"]
        assert exact - 1e-9 <= found <= exact + 0.25


def test_attributions_without_gradients_find_the_half_that_counts(scored: Subject) -> None:
    section = properties()["explanation"].measure(scored, Context(limit=20))
    got = {m.name: m.value for m in section.metrics}
    for name in ("occlusion", "lime"):
        assert got[f"explanation.deletion.{name}"] < got["explanation.deletion.random"]
        assert got[f"explanation.insertion.{name}"] > got["explanation.insertion.random"]


def test_large_inputs_are_explained_by_blocks() -> None:
    data = Data(torch.rand(40, 3, 40, 40, generator=torch_rng(0, "large")), torch.arange(40) % 2, ("a", "b"))
    asked = []

    def bright(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return 20 * (x[:, :, :20, :20].mean((1, 2, 3)) - 0.5)

    subject = from_callable(bright, data, scores="logits")
    asked.clear()
    properties()["explanation"].measure(subject, Context(limit=2))
    assert sum(asked) < 2 * 256 * 8


def test_energy_is_left_out_where_it_is_a_constant() -> None:
    for function, named in ((logits, True), (shares, False)):
        subject = from_callable(function, images(120, "test"))
        section = properties()["ood"].measure(subject, Context(limit=40))
        assert any(".energy." in m.name for m in section.metrics) == named
        assert any("Energy left out" in n for n in section.notes) != named


def test_margins_are_not_passed_off_as_probabilities() -> None:
    data = images(120, "test")
    for scores, told in (("margins", True), ("logits", False)):
        subject = from_callable(logits, data, scores=scores)  # type: ignore[arg-type]
        for name in ("calibration", "labels"):
            notes = properties()[name].measure(subject, Context(limit=40)).notes
            assert any("margins and no probabilities" in n for n in notes) == told


def test_a_failing_slice_is_found_from_decisions(decided: Subject) -> None:
    data = images(400, "slices")

    def wrong_where_the_corner_is_bright(x: np.ndarray) -> np.ndarray:
        return np.where(x[:, 0, 0, 0] > 0.75, 0, logits(x).argmax(1))

    subject = from_callable(wrong_where_the_corner_is_bright, data)
    section = properties()["subgroups"].measure(subject, Context())
    got = {m.name: m for m in section.metrics}
    assert got["subgroups.slices.gap"].value > 0.3
    assert "on the inputs" in got["subgroups.slices.gap"].how


def test_members_are_found_by_decisions_as_far_as_the_gap_goes() -> None:
    """A model that is right on its training data alone."""
    train, data = images(200, "train"), images(200, "test")
    known = {row.tobytes(): int(label) for row, label in zip(train.x.numpy(), train.y, strict=True)}
    subject = from_callable(lambda x: np.array([known.get(row.tobytes(), 0) for row in x]), data, train=train)
    section = properties()["privacy"].measure(subject, Context())
    assert [m.name for m in section.metrics] == ["privacy.generalisation_gap"]
    assert section.metrics[0].value == pytest.approx(2 / 3, abs=0.08)
    assert section.findings[0][0] == pytest.approx(section.metrics[0].value)


def test_a_plan_needs_neither_gradients_nor_training_data(scored: Subject) -> None:
    for subject in (scored, replace(scored, train=None), replace(scored, access=Access.DECISION)):
        rows = {r.name: r for r in plan(subject, limit=6)}
        assert rows["robustness.linf"].backward == 0
        assert (rows["privacy"].skipped is None) == (subject.train is not None)


def test_a_spent_budget_leaves_the_rest_of_the_audit(tmp_path: Path) -> None:
    store, only = Store(tmp_path), ["accuracy", "robustness.linf", "hygiene"]
    few, many = (from_callable(logits, images(120, "test"), budget=n) for n in (300, 500_000))
    found = audit(few, only=only, store=store)
    assert str(found.sections["robustness.linf"].skipped).startswith("the budget of 300 queries is spent")
    assert found.sections["hygiene"].skipped is None
    enough = audit(many, only=only, store=store)
    assert enough.sections["robustness.linf"].skipped is None


def test_an_error_of_the_model_stays_one_line() -> None:
    calls = []

    def breaks_later(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return logits(x) if len(calls) < 2 else np.full((len(x), 4), 0.5)

    subject = from_callable(breaks_later, images(120, "test"), name="odd")
    with pytest.raises(InputError, match=r"^odd: answers of shape \(4,\) a sample; expected scores of 3 classes$"):
        audit(subject, only=["accuracy"])
