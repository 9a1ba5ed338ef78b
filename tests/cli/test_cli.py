"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_processes import Cli, environment

import assay
from assay import methods
from assay.runtime.store import Store

QUICK = ("audit", "--only", "accuracy", "--limit", "60")
HELP = """
import sys
sys.argv[1:] = WORDS
from assay.cli import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "jinja2", "pyarrow", "ray"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["audit", "--help"], ["repair", "--help"], ["version"]])
def test_help_is_quick_and_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code, seconds = HELP.replace("WORDS", repr(words)), []
    for _ in range(3):
        begun = os.times()
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
        spent = os.times()
        seconds.append(
            sum(spent[2:4]) - sum(begun[2:4])
        )  # of the child's CPU: other work on the machine does not count
    assert ended.returncode == 0
    assert ended.stderr == "heavy: []\n"
    assert ("Usage: assay" in ended.stdout) or ended.stdout == f"{assay.__version__}\n"
    assert 0 < min(seconds) <= 1.0


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    assert shown.err == ""
    for name in ("audit", "repair", "compare", "methods", "version"):
        assert f"  {name} " in shown.out
    bare = cli()
    assert bare.code == 2
    assert "Commands:" in bare.err
    assert bare.out == ""


def test_json_is_one_document_and_all_else_is_on_stderr(cli: Cli, tmp_path: Path) -> None:
    ran = cli(*QUICK, "--json", "--out", tmp_path / "out")
    assert ran.code == 0
    document = json.loads(ran.out, parse_constant=lambda name: pytest.fail(name))
    assert (document["schema"], document["kind"]) == ("assay/1", "audit")
    assert all(line.startswith("assay: ") for line in ran.err.splitlines())
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert kept["sections"] == document["sections"]


def test_without_json_the_terminal_shows_the_headline(cli: Cli, tmp_path: Path) -> None:
    ran = cli(*QUICK, "--out", tmp_path / "out")
    assert ran.code == 0
    assert "accuracy.top1" in ran.out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in ran.out.replace("\n", "")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "metrics.parquet",
        "report.html",
        "report.json",
        "report.md",
    }


def test_exit_codes_follow_the_requirements(cli: Cli, tmp_path: Path) -> None:
    assert cli(*QUICK, "--require", "accuracy.top1>=0.5").code == 0
    failed = cli(*QUICK, "--json", "--require", "accuracy.top1>=0.5 and accuracy.top1>1")
    assert failed.code == 1
    assert failed.err.splitlines()[-1].startswith("assay: requirement not met: accuracy.top1 > 1: observed")
    assert json.loads(failed.out)["kind"] == "audit"
    policy = tmp_path / "policy.toml"
    policy.write_text("policy = 1\nrequire = ['low(accuracy.top1) > 0.999']\n")
    assert cli(*QUICK, "--require", policy).code == 1
    wrong = cli(*QUICK, "--require", "acuracy.top1>=0.5")
    assert wrong.code == 2
    assert "did you mean 'accuracy.top1'?" in wrong.complaint()
    assert wrong.out == ""


def test_a_plan_measures_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "empty"))
    ran = cli("audit", folder, "--plan", "--json", "--limit", 60)
    document = json.loads(ran.out)
    assert (ran.code, document["schema"], document["kind"]) == (0, "assay/1", "plan")
    assert document["seconds"] == pytest.approx(sum(r["seconds"] for r in document["properties"]), abs=0.1)
    assert not list(Store(tmp_path / "empty").root.glob("*/*"))
    table = cli("audit", folder, "--plan", "--only", "accuracy", "--limit", 60)
    assert table.code == 0
    assert "about " in table.out


def test_comparing_shows_every_pair(cli: Cli, folder: Path, tmp_path: Path) -> None:
    ran = cli("compare", folder, folder, "digits", *QUICK[1:], "--json", "--out", tmp_path / "out")
    document = json.loads(ran.out)
    assert (ran.code, document["schema"], document["kind"]) == (0, "assay/1", "comparison")
    assert len(document["pairs"]) == 2
    assert not any(row["significant"] for pair in document["pairs"] for row in pair["rows"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"1", "2"}


def test_methods_lists_the_catalogue(cli: Cli) -> None:
    if not methods.CATALOGUE.is_file():
        pytest.skip("the catalogue is not committed")
    ran = cli("methods", "--room", "attacks", "--json")
    assert ran.code == 0
    listed = json.loads(ran.out)
    assert listed["schema"] == "assay/1"
    assert {m["room"] for m in listed["methods"]} == {"attacks"}
    assert "unknown room" in cli("methods", "--room", "attaks").complaint()


def test_a_listing_elsewhere_than_on_a_terminal_has_one_line_a_row(cli: Cli) -> None:
    rows = json.loads(cli("papers", "--json").out)["papers"]
    lines = cli("papers").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [r["slug"] for r in rows]
    assert all(line.rstrip().endswith(r["title"]) for line, r in zip(lines, rows, strict=True))


def test_a_listing_on_a_narrow_terminal_cuts_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    ran = cli("methods", "--room", "calibrate")
    assert "…" not in ran.out
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in ran.out.splitlines()) <= 40


def test_brackets_in_a_path_are_no_markup_on_a_terminal(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = cli("audit", tmp_path / "models[" / "old]")
    assert ran.code == 2
    assert "models[/old]': no such folder" in ran.err


def test_what_stops_a_comparison_or_a_repair_is_said_before_the_work(cli: Cli, folder: Path, tmp_path: Path) -> None:
    given = assay.load(folder)
    other = replace(given, test=given.test[:50]).save(tmp_path / "other")
    compared = cli("compare", folder, other, "--only", "accuracy")
    assert "has other test data" in compared.err
    (tmp_path / "out" / "subject").mkdir(parents=True)
    repaired = cli("repair", folder, "--with", "calibrate.TemperatureScaling", "--out", tmp_path / "out")
    assert "is no subject" in repaired.err
    for ran in (compared, repaired):
        assert ran.code == 2
        assert "measured before" not in ran.err
