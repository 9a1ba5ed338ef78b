"""The property that attacks model and detector."""

from __future__ import annotations

import pytest

from assay.audit.adversarial_detection import PROPERTY
from assay.audit.property import Context, Section
from assay.subject import Subject, load


@pytest.fixture(scope="module")
def digits() -> Subject:
    return load("digits")


@pytest.fixture(scope="module")
def section(digits: Subject) -> Section:
    return PROPERTY.measure(digits, Context(profile="quick", limit=48))


def test_knowing_of_the_detector_never_hurts_the_attack(section: Section) -> None:
    found = {m.name: m.value for m in section.metrics}
    names = {n.split(".")[1] for n in found if n.count(".") == 2}
    assert {"msp", "energy", "mahalanobis"} <= names
    for name in names:
        handled, adaptive = (found[f"adversarial_detection.{name}.{key}"] for key in ("handled", "adaptive"))
        assert handled is not None
        assert adaptive is not None
        assert adaptive <= handled
    bare = found["adversarial_detection.undefended"]
    assert bare is not None
    assert any((found[f"adversarial_detection.{n}.handled"] or 0) > bare for n in names)


def test_it_says_which_attack_was_used(section: Section) -> None:
    how = {m.name: m.how for m in section.metrics}
    assert "joint margin" in how["adversarial_detection.msp.adaptive"]
    assert "model alone" in how["adversarial_detection.msp.handled"]
    assert len(section.findings) == 1
    assert "knows of the detector" in section.findings[0][1]


def test_it_needs_weights(digits: Subject) -> None:
    from dataclasses import replace

    from assay.subject import Access

    assert "WEIGHTS" in (PROPERTY.missing(replace(digits, access=Access.SCORE)) or "")
    assert PROPERTY.missing(digits) is None
