"""The GitHub Action and the pre-commit hook: their own scripts are run here, as the services run them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import assay

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return parsed


@pytest.fixture
def workplace(tmp_path: Path) -> dict[str, str]:
    """The environment of a step: an empty folder, with assay's command on the path as an installation puts it there."""
    command = tmp_path / "bin" / "assay"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom assay.cli import main\nmain()\n")
    command.chmod(0o755)
    source = str(Path(assay.__file__).parents[1])
    found = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **found, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}


def step(action: dict[str, Any], name: str, inputs: dict[str, str], folder: Path, workplace: dict[str, str]) -> int:
    """Run one step's script as a runner does: inputs by the step's env, bash with -e and pipefail."""
    found = next(s for s in action["runs"]["steps"] if s.get("name") == name)
    values = {k: v["default"] for k, v in action["inputs"].items()} | inputs
    env = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], v) for k, v in found["env"].items()}
    script = folder / "step.sh"
    script.write_text(found["run"])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    return subprocess.run(command, cwd=folder, env={**workplace, **env}, check=False, timeout=240).returncode


def test_the_action_is_composite_and_runs_no_input_as_script(action: dict[str, Any]) -> None:
    assert action["runs"]["using"] == "composite"
    assert {"subject", "data", "require", "profile", "out"} <= set(action["inputs"])
    assert all("default" in v and v["description"] for v in action["inputs"].values())
    for found in action["runs"]["steps"]:
        assert ("uses" in found) != ("run" in found)
        if "run" in found:
            assert found["shell"] == "bash"
            assert "${{" not in found["run"]
        else:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", found["uses"])
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(action["inputs"])


def test_the_action_audits_judges_and_sums_up(
    action: dict[str, Any], tmp_path: Path, workplace: dict[str, str]
) -> None:
    assay.load("digits").save(tmp_path / "my $(touch bad) model")
    (tmp_path / "policy.toml").write_text(
        "policy = 2\n[[require]]\nthat = 'accuracy.top1 >= 0.5'\nreason = 'agreed'\n"
        "[[require]]\nthat = 'accuracy.top1 > 1'\n"
    )
    (tmp_path / "assay.toml").write_text("only = 'accuracy'\nlimit = 60\n")
    inputs = {"subject": "my $(touch bad) model", "require": "policy.toml", "config": "assay.toml", "out": "a report"}
    assert step(action, "Audit", inputs, tmp_path, workplace) == 1
    assert {p.name for p in (tmp_path / "a report").iterdir()} == {
        "junit.xml",
        "metrics.parquet",
        "report.html",
        "report.json",
        "report.md",
    }
    assert step(action, "Summary", inputs, tmp_path, workplace) == 0
    summary = (tmp_path / "summary.md").read_text()
    assert "| met | accuracy.top1 &gt;= 0.5 |" in summary
    assert "| not met | accuracy.top1 &gt; 1 |" in summary
    assert "## Findings" in summary
    assert "model-index" not in summary
    assert not (tmp_path / "bad").exists()


def test_without_a_report_the_summary_is_empty(
    action: dict[str, Any], tmp_path: Path, workplace: dict[str, str]
) -> None:
    assert step(action, "Audit", {"subject": "absent"}, tmp_path, workplace) == 2
    assert step(action, "Summary", {"subject": "absent"}, tmp_path, workplace) == 0
    assert not (tmp_path / "summary.md").exists()


def test_the_hook_checks_a_recorded_report(tmp_path: Path, workplace: dict[str, str]) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert re.search(hook["files"], "runs/digits/report.json")
    assert re.search(hook["files"], "policy.toml")
    assert not re.search(hook["files"], "model.py")
    report = assay.audit(assay.load("digits"), only=["accuracy"], limit=60).save(tmp_path / "digits")
    codes = []
    for bound in (0.5, 1.5):
        (tmp_path / "policy.toml").write_text(f"policy = 1\nrequire = ['accuracy.top1 >= {bound}']\n")
        command = [*shlex.split(hook["entry"]), str(report / "report.json"), "--require", "policy.toml"]
        codes.append(subprocess.run(command, cwd=tmp_path, env=workplace, check=False, timeout=60).returncode)
    assert codes == [0, 1]
