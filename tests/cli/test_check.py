"""Gates on the command line: policies, JUnit, and recorded reports that are checked without running anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cli_processes import Cli, environment

QUICK = ("--only", "accuracy", "--limit", "60")
LIGHT = """
import sys
sys.argv[1:] = WORDS
from assay.cli import main
try:
    main()
finally:
    heavy = {"torch", "scipy", "sklearn", "matplotlib", "pyarrow", "pandas", "ray", "assay.audit"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import assay

    return assay.audit(assay.load("digits"), only=["accuracy"], limit=60).save(tmp_path_factory.mktemp("r") / "digits")


@pytest.fixture
def policy(report: Path, tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(
        "policy = 2\n"
        "[[require]]\nthat = 'accuracy.top1 >= 0.5'\n"
        "[[require]]\nthat = 'accuracy.top1 > 1 and accuracy.worst_class > 1'\nreason = 'the | contract'\n"
        "[[require]]\nthat = 'low(accuracy.top1) > 1'\nseverity = 'warning'\n"
        f"[[require]]\nmetric = 'accuracy.top1'\nbaseline = '{report}'\nworse_by = 0.2\n"
    )
    return path


def test_check_lists_every_failure_and_exits_1(cli: Cli, report: Path, policy: Path) -> None:
    ran = cli("check", report, "--require", policy)
    assert ran.code == 1
    assert [line.split()[0] for line in ran.out.splitlines()] == ["met", "not", "not", "not", "met"]
    told = ran.err.splitlines()
    assert len(told) == 3
    assert told[0].startswith("assay: requirement not met: accuracy.top1 > 1: observed ")
    assert told[1].endswith("(required because: the | contract)")
    assert told[2].startswith("assay: warning, not met: low(accuracy.top1) > 1")


def test_a_warning_alone_exits_0(cli: Cli, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("policy = 2\n[[require]]\nthat = 'accuracy.top1 > 1'\nseverity = 'warning'\n")
    ran = cli("check", report / "report.json", "--require", path)
    assert ran.code == 0
    assert ran.err.startswith("assay: warning, not met: accuracy.top1 > 1")


def test_check_as_json_markdown_and_junit(cli: Cli, report: Path, policy: Path, tmp_path: Path) -> None:
    ran = cli("check", report, "--require", policy, "--json", "--junit", tmp_path / "j.xml")
    document = json.loads(ran.out)
    assert (document["schema"], document["kind"], document["reports"][0]["met"]) == ("assay/1", "check", False)
    assert [v["state"] for v in document["reports"][0]["verdicts"]] == ["met", "failed", "failed", "failed", "met"]
    assert len(ET.parse(tmp_path / "j.xml").findall(".//failure")) == 2
    shown = cli("check", report, report, "--require", policy, "--markdown").out
    rows = [line for line in shown.splitlines() if line.startswith("| not met")]
    assert len(rows) == 6
    assert "the \\| contract" in rows[0]


def test_check_is_quick_and_imports_no_model_code(report: Path, tmp_path: Path) -> None:
    code = LIGHT.replace("WORDS", repr(["check", str(report), "--require", "accuracy.top1>=0.5"]))
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "heavy: []\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"schema": "assay/1", "x": NaN}', "NaN is no JSON number"),
        ("[]", "no schema 'assay/1'"),
        ('{"schema": "assay/2"}', "no schema 'assay/1'"),
        ('{"schema": "assay/1"}', "expected a report of schema"),
        ('{"schema": "assay/1", "kind": "plan"}', "expected 'audit' or 'effects'"),
        ('{"schema": "assay/1", "kind": "effects", "rows": [], "steps": []}', "expected a report of schema"),
        ('{"schema": "assay/1", "kind": "audit", "sections": []}', "expected a report of schema"),
        (b"\xff\xfe", "no valid JSON"),
    ],
)
def test_what_is_no_report_is_one_line(content: str | bytes | None, message: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ran = cli("check", path, "--require", "accuracy.top1>=0.5")
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.complaint()


def test_check_refuses_what_it_cannot_do_at_once(cli: Cli, report: Path, tmp_path: Path) -> None:
    one = ("check", report, "--require", "accuracy.top1>=0.5")
    assert "expected one of them" in cli(*one, "--json", "--markdown").complaint()
    assert "expected one" in cli("check", report, *one[1:], "--junit", tmp_path / "j.xml").complaint()
    assert cli("check", report).code == 2


def test_an_audit_writes_junit_and_keeps_its_report_when_a_metric_is_unknown(cli: Cli, tmp_path: Path) -> None:
    out, xml = tmp_path / "out", tmp_path / "new" / "junit.xml"
    ran = cli("audit", *QUICK, "--out", out, "--require", "acuracy.top1>=0.5", "--junit", xml)
    assert ran.code == 2
    assert "did you mean 'accuracy.top1'?" in ran.complaint()
    assert (out / "report.json").exists()
    assert cli("audit", *QUICK, "--require", "accuracy.top1>1", "--junit", xml).code == 1
    assert len(ET.parse(xml).findall(".//failure")) == 1
    refused = cli("audit", *QUICK, "--junit", tmp_path)
    assert refused.code == 2
    assert "a folder; expected a file" in refused.complaint()


def test_a_comparison_is_checked_by_its_paired_change(cli: Cli, folder: Path) -> None:
    same = ("compare", folder, folder, *QUICK)
    assert cli(*same, "--require", "low(change(accuracy.top1)) >= 0 and accuracy.top1 >= 0.5").code == 0
    ran = cli(*same, "--require", "change(accuracy.top1) > 0", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["kind"] == "comparison"
    assert ran.err.splitlines()[-1] == (
        f"assay: {folder}: requirement not met: change(accuracy.top1) > 0: observed 0 [0, 0]"
    )
