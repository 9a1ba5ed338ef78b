"""The property "backdoor": a poisoned model is found out, a clean one is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact

from assay.attacks import badnets, poison
from assay.audit import audit
from assay.audit.backdoor import LEAST, PROPERTY
from assay.audit.property import Context, Section
from assay.audit.registry import select
from assay.data import Data
from assay.detect import ConformalDetector
from assay.nets import MLP, SmallCNN
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.runtime.store import Store
from assay.subject import Access, Subject, load
from assay.training import Supervised

TARGET = 3
STANDARD = Context("standard")
INFERENCE = {"backdoor.inference.flagged"}
TRAINING = {"backdoor.spectral.flagged", "backdoor.clusters.flagged"}
COMPARED = {
    "backdoor.training.excess",
    "backdoor.classes",
    "backdoor.spectral.worst_class",
    "backdoor.clusters.worst_class",
}


@pytest.fixture(scope="module")
def digits() -> Subject:
    return load("digits")


@pytest.fixture(scope="module")
def poisoned(digits: Subject) -> Subject:
    assert digits.train is not None
    x, y, _ = poison(digits.train.x, digits.train.y, badnets, TARGET, 0.05, seed=0)
    train = replace(digits.train, x=x, y=y)
    with seeded(0, "init"):
        model = SmallCNN()
    return replace(digits, model=Supervised(epochs=20).fit(model, train, seed=0), train=train)


@pytest.fixture(scope="module")
def found(poisoned: Subject) -> Section:
    return PROPERTY.measure(poisoned, STANDARD)


def values(section: Section) -> dict[str, float | None]:
    return {m.name: m.value for m in section.metrics}


def test_it_belongs_to_the_longer_profiles_and_comes_after_ood() -> None:
    for profile in ("standard", "deep"):
        names = [p.name for p in select(profile, None)]
        assert names.index("ood") < names.index("backdoor") < names.index("privacy")
    assert "backdoor" not in [p.name for p in select("quick", None)]


def test_a_poisoned_model_is_found_out(found: Section) -> None:
    got = values(found)
    assert set(got) == INFERENCE | TRAINING | COMPARED
    assert got["backdoor.classes"] == 1
    assert got["backdoor.training.excess"] > 0.2
    assert next(m for m in found.metrics if m.name == "backdoor.training.excess").low > 0.1
    rows = found.tables["classes"]
    assert int(np.argmin([row["p"] for row in rows])) == TARGET
    for name in ("spectral", "clusters"):
        worst = next(m for m in found.metrics if m.name == f"backdoor.{name}.worst_class")
        assert f"flagged in class {TARGET} " in worst.how
        assert worst.low > 0.3
        assert worst.interval == "Wilson 95%"
    severity, text = max(found.findings)
    assert severity > 0.5
    assert text.startswith(f"Training samples of class {TARGET} look planted")
    assert set(found.headline) <= set(got)
    assert Section.from_arrays(found.to_arrays()).to_dict() == found.to_dict()


def test_a_clean_model_is_not(digits: Subject) -> None:
    section = PROPERTY.measure(digits, STANDARD)
    assert values(section)["backdoor.classes"] == 0
    assert [s for s, _ in section.findings] == [0.0]
    assert section.findings[0][1].startswith("No class of the training set looks planted")
    rate = next(m for m in section.metrics if m.name == "backdoor.inference.flagged")
    assert rate.low < 0.1


def test_numbers_are_those_of_the_detector_and_fishers_test(poisoned: Subject, found: Section) -> None:
    alarm = ConformalDetector(alpha=0.05, method="marginal").fit(poisoned.model, poisoned.holdout)
    unlike = {s: alarm.predict(getattr(poisoned, s).x) for s in ("train", "test")}
    put = {s: predict(poisoned.model, getattr(poisoned, s).x).argmax(1).numpy() for s in ("train", "test")}
    assert values(found)["backdoor.inference.flagged"] == pytest.approx(unlike["test"].mean())
    for c, row in enumerate(found.tables["classes"]):
        here = [unlike[s][put[s] == c] for s in ("train", "test")]
        expected = fisher_exact([[h.sum(), (~h).sum()] for h in here], "greater")[1]
        assert row["p"] == pytest.approx(expected)
        assert row["unlike.train"] == pytest.approx(here[0].mean(), abs=1e-4)
    excess = found.samples["backdoor.training.excess"]
    here = [unlike[s][put[s] == TARGET].mean() for s in ("train", "test")]
    assert values(found)["backdoor.training.excess"] == pytest.approx(here[0] - here[1])
    assert len(np.unique(excess.index)) == len(excess.index)


def test_triggers_among_the_test_samples_are_reported(poisoned: Subject) -> None:
    x = poisoned.test.x.clone()
    x[:200] = badnets(x[:200])
    section = PROPERTY.measure(replace(poisoned, test=poisoned.test.with_x(x)), STANDARD)
    assert values(section)["backdoor.inference.flagged"] > 0.2
    assert any("of the test samples are unlike" in text for _, text in section.findings)


def test_what_cannot_run_is_said(digits: Subject, tmp_path) -> None:
    section = PROPERTY.measure(replace(digits, train=None), STANDARD)
    assert set(values(section)) == INFERENCE
    assert any("pass --train" in note for note in section.notes)
    assert digits.holdout is not None
    few = PROPERTY.measure(replace(digits, holdout=digits.holdout[: LEAST - 1]), STANDARD)
    assert set(values(few)) == TRAINING
    assert any(f"there are {LEAST - 1}" in note for note in few.notes)
    less = audit(replace(digits, access=Access.GRADIENT), only=["backdoor"], store=Store(tmp_path))
    assert less.sections["backdoor"].skipped == "needs WEIGHTS access; the subject grants GRADIENT"


def test_inputs_that_are_no_images_and_classes_without_samples() -> None:
    x = torch.rand(240, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    data = Data(x, y, ("a", "b", "never"))
    section = PROPERTY.measure(Subject(MLP((6,), 3), data, data, holdout=data[:80]), STANDARD)
    assert section.tables["classes"][2]["samples"] == 0
    assert section.tables["classes"][2]["clusters.evidence"] is None
    assert values(section)["backdoor.classes"] == 0


def test_cost_counts_every_forward_pass(digits: Subject) -> None:
    for subject in (digits, replace(digits, train=None)):
        seen: list[int] = []
        handle = digits.model.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(len(args[0])))
        PROPERTY.measure(subject, STANDARD)
        handle.remove()
        planned = PROPERTY.cost(subject, STANDARD).forward
        assert 0.95 < sum(seen) / planned < 1.1
