"""Requirements: expressions, ends of intervals, policy files, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.audit.property import Section
from assay.audit.requirements import Requirement, parse
from assay.audit.result import Audit
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric


def made() -> Audit:
    metrics = [Metric("accuracy.top1", 0.9, 0.85, 0.95), Metric("calibration.ece", 0.04), Metric("empty", None)]
    sections = {"accuracy": Section(metrics=metrics), "privacy": Section(skipped="needs the training data")}
    return Audit("s", "quick", 0, sections, {"accuracy": "Accuracy", "privacy": "Privacy"})


def failures(text: str) -> list[str]:
    return [f for r in parse(text) if (f := r.failure(made())) is not None]


def test_an_expression_is_read_term_by_term() -> None:
    assert parse("calibration.ece<=0.05 and  low(accuracy.top1) > -1.5e-1") == [
        Requirement("calibration.ece", "<=", 0.05),
        Requirement("accuracy.top1", ">", -0.15, "low"),
    ]
    assert str(parse("high( a.b-c@1 )>=2")[0]) == "high(a.b-c@1) >= 2"


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("accuracy.top1>=0.9", True),
        ("accuracy.top1>0.9", False),
        ("accuracy.top1<=0.9", True),
        ("accuracy.top1<0.9", False),
        ("low(accuracy.top1)>=0.86", False),
        ("low(accuracy.top1)>=0.85", True),
        ("high(accuracy.top1)<=0.94", False),
        ("high(accuracy.top1)<0.951", True),
        ("accuracy.top1>=0.5 and calibration.ece<=0.01", False),
    ],
)
def test_each_operator_and_each_end(text: str, met: bool) -> None:
    assert (failures(text) == []) is met


def test_failures_say_what_was_seen() -> None:
    assert failures("accuracy.top1>=0.95") == ["accuracy.top1 >= 0.95: observed 0.9"]
    assert failures("low(calibration.ece)>=0") == ["low(calibration.ece) >= 0: no low was resolved"]
    assert failures("empty>=0") == ["empty >= 0: no value was resolved"]
    assert failures("privacy.auc<=0.6") == ["privacy.auc <= 0.6: not measured (needs the training data)"]


def test_an_unknown_metric_is_named_with_its_nearest_match() -> None:
    with pytest.raises(InputError, match=r"'acuracy.top1'; did you mean 'accuracy.top1'\?"):
        failures("acuracy.top1>=0.9")


@pytest.mark.parametrize(
    "text", ["", "  ", "accuracy", "a>=", "a>=x", "a==1", "a>=1.2.3", "a>=nan", "a>=1 and", "mid(a)>=1", "a>=1 or b>=1"]
)
def test_what_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--require") as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_policy_file_holds_a_list_of_expressions(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('policy = 1\nrequire = ["accuracy.top1 >= 0.9 and calibration.ece < 0.05", "high(a) <= 1"]\n')
    assert [str(r) for r in parse(str(path))] == ["accuracy.top1 >= 0.9", "calibration.ece < 0.05", "high(a) <= 1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "policy = 2\nrequire = ['a>=1']",
        "policy = 1\nrequire = []",
        "policy = 1\nrequire = 'a>=1'",
        "policy = 1\nrequire = [1]",
        "policy = 1\nrequire = ['other.toml']",
        "policy = 1\nrequire = ['a>=x']",
        "policy = ",
        "\x00",
    ],
)
def test_a_malformed_policy_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="--require") as error:
        parse(str(path))
    assert "\n" not in str(error.value)


def test_a_policy_that_names_itself_or_is_absent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"policy = 1\nrequire = ['{path}']\n")
    for text in (str(path), str(tmp_path / "absent.toml"), "audit.toml"):
        with pytest.raises(InputError, match="--require"):
            parse(text)
