"""JUnit XML for continuous integration: one test case a requirement, one a property."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from assay.gates.evidence import Evidence
from assay.gates.policy import Verdict
from assay.runtime.errors import InputError
from assay.runtime.files import write_whole

# What XML 1.0 cannot hold, escaped or not.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(path: Path, found: Evidence, verdicts: Sequence[Verdict]) -> None:
    """Write ``path`` (or the file that it links to), whole or not at all; InputError when it cannot be written.

    A requirement that is not met is a failure when it is an error, and skipped with its message when it is a warning or
    undecided. A property that ran passes; one that was skipped says why.
    """
    check_file(path)
    try:
        write_whole(Path(os.path.realpath(path)), document(found, verdicts))
    except OSError as error:
        raise InputError(f"--junit {path}: {error.strerror}; expected a file that can be written") from error


def check_file(path: Path) -> None:
    """InputError where ``path`` is there and no regular file: a folder, or a device or pipe that would be replaced."""
    if path.is_dir():
        raise InputError(f"--junit {path}: a folder; expected a file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"--junit {path}: no regular file; expected a file to write")


def document(found: Evidence, verdicts: Sequence[Verdict]) -> bytes:
    """The XML, UTF-8."""
    root = ET.Element("testsuites")
    gates = ET.Element("testsuite")
    for verdict in verdicts:
        case = _case(gates, "assay.requirements", verdict.requirement, 0.0)
        if verdict.blocks:
            failure = ET.SubElement(case, "failure", message=_text(verdict.seen), type="requirement")
            failure.text = _text(str(verdict))
        elif verdict.state != "met":
            word = "warning" if verdict.state == "failed" else "undecided"
            ET.SubElement(case, "skipped", message=_text(f"{word}: {verdict}"))
    properties = ET.Element("testsuite")
    for name, part in found.parts.items():
        case = _case(properties, "assay.properties", name, part.seconds)
        if part.skipped is not None:
            ET.SubElement(case, "skipped", message=_text(part.skipped))
    for k, (name, suite) in enumerate((("requirements", gates), ("properties", properties))):
        _complete(suite, k, f"{name} of {found.name}")
        root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _case(suite: ET.Element, group: str, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=_text(name), classname=group, time=f"{seconds:.3f}")


def _complete(suite: ET.Element, number: int, name: str) -> None:
    """The attributes and elements that schemas of JUnit want of every suite, in their order."""
    cases = suite.findall("testcase")
    suite.attrib |= {
        "name": _text(name),
        "package": "assay",
        "id": str(number),
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": _text(platform.node()) or "localhost",
        "tests": str(len(cases)),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": "0",
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "time": f"{sum(float(c.attrib['time']) for c in cases):.3f}",
    }
    suite.insert(0, ET.Element("properties"))
    ET.SubElement(suite, "system-out")
    ET.SubElement(suite, "system-err")


def _text(value: str) -> str:
    """``value`` with what XML cannot hold written as an escape."""
    return _ILLEGAL.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), value)
