"""Full disks, read-only folders, several runs at once, clocks, streams, locales: nothing lost, nothing half-written."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from processes import MAIN, QUICK, REPORTS, environment, leftovers, measured, run, said, start


def small_files(size: int) -> None:
    """No file may grow past ``size`` bytes: writing fails in the middle, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


NEVER = "/proc/assay"  # nobody can make a folder there, root included


@pytest.mark.parametrize("size", [1500, 20_000])
def test_a_full_disk_is_one_line_and_keeps_what_is_whole(size: int, folder: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    code, stdout, err = run(cache, "audit", folder, *QUICK, "--out", out, before=partial(small_files, size))
    assert (code, stdout) == (2, "")
    assert "cannot be written" in said(err)[-1] or "result store" in said(err)[-1]
    assert leftovers(tmp_path) == []
    code, _, err = run(cache, "audit", folder, *QUICK, "--out", out)
    assert code == 0, err
    assert {p.name for p in out.iterdir()} == REPORTS
    assert size < 20_000 or "measured before" in err


def test_a_full_disk_while_the_subject_is_kept(folder: Path, tmp_path: Path) -> None:
    words = ("repair", folder, "--with", "calibrate.TemperatureScaling", "--only", "accuracy", "--limit", "60")
    assert run(tmp_path / "cache", *words, "--out", tmp_path / "out")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out" / "subject").iterdir()}
    code, stdout, err = run(tmp_path / "cache", *words, "--out", tmp_path / "out", before=partial(small_files, 3000))
    assert (code, stdout) == (2, "")
    assert "subject: cannot be written" in said(err)[-1]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "subject").iterdir()} == before
    assert leftovers(tmp_path) == []


def test_folders_that_cannot_be_written_are_named_before_the_work(folder: Path, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "cache", "audit", folder, *QUICK, "--out", NEVER)
    assert (code, len(said(err))) == (2, 1)
    assert f"--out {NEVER}" in err
    code, _, err = run(Path(NEVER), "audit", folder, *QUICK)
    assert code == 2
    assert f"result store {NEVER}" in said(err)[-1]


def test_two_audits_of_one_folder_and_one_store_at_once(folder: Path, tmp_path: Path) -> None:
    words = ("audit", folder, *QUICK, "--json", "--out", tmp_path / "out")
    both = [start(tmp_path / "cache", *words) for _ in range(2)]
    for command in both:
        code, out, err = command.end()
        said(err)
        assert code == 0
        assert json.loads(out)["kind"] == "audit"
    assert {p.name for p in (tmp_path / "out").iterdir()} == REPORTS
    assert leftovers(tmp_path / "cache") == []
    assert json.loads((tmp_path / "out" / "report.json").read_text())["schema"] == "assay/1"


def jumping_clock() -> None:
    """The time of day leaps by decades, and before 1970."""
    steps, real = itertools.cycle((0, -1e9, 1e9, -1e12)), time.time
    time.time = lambda: real() + next(steps)


def test_a_clock_that_jumps_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for name, before in (("calm", None), ("jumping", jumping_clock)):
        code, _, err = run(tmp_path / name, "audit", folder, *QUICK, "--out", tmp_path / f"{name} out", before=before)
        assert code == 0, err
    jumping = json.loads((tmp_path / "jumping out" / "report.json").read_text())
    assert 0 <= jumping["meta"]["seconds"] < 120
    assert all(0 <= s["seconds"] < 120 for s in jumping["sections"].values())
    assert measured(tmp_path / "calm out" / "report.json") == measured(tmp_path / "jumping out" / "report.json")


LISTING = [sys.executable, "-c", MAIN, "methods"]


@pytest.mark.parametrize(
    ("redirections", "code"),
    [
        (">&-", 0),
        ("<&-", 0),
        (">&- 2>&- <&-", 0),
        (">/dev/full", 2),
        ("2>/dev/full", 0),
        ("| { exec <&-; sleep 3; }", 141),
    ],
)
def test_closed_and_full_streams_give_no_traceback(redirections: str, code: int, tmp_path: Path) -> None:
    shell = ["bash", "-c", f'set -o pipefail; "$@" {redirections}', "bash", *LISTING, "--json"]
    ended = subprocess.run(shell, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_a_table_into_a_pipe_that_is_closed_ends_silently(tmp_path: Path) -> None:
    shell = ["bash", "-c", 'set -o pipefail; "$@" | { exec <&-; sleep 3; }', "bash", *LISTING]
    ended = subprocess.run(shell, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_no_home_no_locale_and_odd_names_and_nothing_is_written_elsewhere(folder: Path, tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    out = tmp_path / os.fsdecode(b"r\xe9sultat\xff \xc3\xa9\n")
    plain = {**environment(tmp_path / "cache", home), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-c", MAIN, "audit", folder, "--only", "accuracy", "--limit", "60", "--out", out]
    ended = subprocess.run(words, env=plain, cwd=here, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert b"report: " in ended.stdout
    assert {p.name for p in out.iterdir()} == REPORTS
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []
    del plain["HOME"]
    ended = subprocess.run([*LISTING, "--room", "losses"], env=plain, cwd=here, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert list(here.rglob("*")) == []
