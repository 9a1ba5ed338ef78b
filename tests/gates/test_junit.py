"""JUnit XML: the elements and attributes that continuous integration reads, whatever the names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from assay.audit.property import Section
from assay.audit.result import Audit
from assay.gates import Evidence, Verdict, evidence, judge, junit, parse
from assay.gates.junit import document
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric

HOSTILE = '<b>"&\x00\x1b]]>\ud800\nend'
SUITE = {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time"}


def made(name: str = "digits") -> Evidence:
    ran = Section(metrics=[Metric("accuracy.top1", 0.9, 0.8, 0.95, better="higher")], seconds=1.5)
    sections = {"accuracy": ran, "privacy": Section(skipped=f"needs {name}")}
    return evidence(json.loads(Audit(name, "quick", 0, sections, dict.fromkeys(sections, name)).to_json()))


def verdicts(found: Evidence) -> list[Verdict]:
    met, failed = judge(parse("accuracy.top1>=0.5 and accuracy.top1>=0.99"), found)
    warned = Verdict("a <= 1", "a", "failed", "observed 2", "because", "warning")
    return [met, failed, warned, Verdict("b", "b", "undecided", "across", "", "error")]


def conforms(root: ET.Element) -> None:
    """The structure that the usual schemas share: Ant's, Jenkins', and what GitLab and GitHub's readers expect."""
    assert root.tag == "testsuites"
    assert {child.tag for child in root} == {"testsuite"}
    for k, suite in enumerate(root):
        assert set(suite.attrib) == SUITE
        assert suite.attrib["id"] == str(k)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert suite.attrib["hostname"].strip()
        tags = [child.tag for child in suite]
        cases = suite.findall("testcase")
        assert tags == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
        assert int(suite.attrib["tests"]) == len(cases)
        for kind in ("failure", "error", "skipped"):
            plural = {"failure": "failures", "error": "errors", "skipped": "skipped"}[kind]
            assert int(suite.attrib[plural]) == sum(c.find(kind) is not None for c in cases)
        assert float(suite.attrib["time"]) == pytest.approx(sum(float(c.attrib["time"]) for c in cases))
        for case in cases:
            assert set(case.attrib) == {"name", "classname", "time"}
            assert [c.tag for c in case] in ([], ["failure"], ["skipped"])
            for failure in case.findall("failure"):
                assert set(failure.attrib) == {"message", "type"}


def test_one_case_a_requirement_and_one_a_property() -> None:
    found = made()
    root = ET.fromstring(document(found, verdicts(found)))
    conforms(root)
    gates, properties = root
    failure = gates[2].find("failure")
    assert failure is not None
    assert gates[2].attrib["name"] == "accuracy.top1 >= 0.99"
    assert failure.attrib["message"] == "observed 0.9 [0.8, 0.95]"
    assert [s.attrib["message"] for s in gates.iter("skipped")] == [
        "warning: a <= 1: observed 2 (required because: because)",
        "undecided: b: across",
    ]
    assert [(c.attrib["name"], c.attrib["time"]) for c in properties.findall("testcase")] == [
        ("accuracy", "1.500"),
        ("privacy", "0.000"),
    ]
    assert [s.attrib["message"] for s in properties.iter("skipped")] == ["needs digits"]


def test_names_cannot_break_the_document() -> None:
    found = made(HOSTILE)
    bad = Verdict(HOSTILE, HOSTILE, "failed", HOSTILE, HOSTILE, "error")
    root = ET.fromstring(document(found, [bad]))
    conforms(root)
    assert root[0][1].attrib["name"] == '<b>"&\\x00\\x1b]]>\\ud800\nend'
    assert not list(root.iter("b"))


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    junit(path, made(), [])
    conforms(ET.parse(path).getroot())
    assert [p.name for p in tmp_path.iterdir()] == ["junit.xml"]
    with pytest.raises(InputError, match="--junit"):
        junit(tmp_path / "absent" / "junit.xml", made(), [])


def test_only_a_regular_file_is_replaced_and_a_link_stays_one(tmp_path: Path) -> None:
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "junit.xml"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="no regular file"):
        junit(pipe, made(), [])
    assert pipe.is_fifo()
    file.touch()
    link.symlink_to(file)
    junit(link, made(), [])
    assert link.is_symlink()
    conforms(ET.parse(file).getroot())
