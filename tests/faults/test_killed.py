"""``kill -9`` and Ctrl-C at random moments: the same command then finishes, as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from processes import MAIN, QUICK, environment, leftovers, measured, run, said, start

from assay.cli.folder import claim, keep_subject
from assay.subject import Subject, load

REPAIR = ("--with", "compress.MagnitudePruning")


def struck(cache: Path, words: tuple[object, ...], moment: float, blow: signal.Signals) -> tuple[int, str]:
    """The command, ``blow`` after ``moment`` seconds."""
    command = start(cache, *words)
    command.process.join(moment)
    if command.process.exitcode is None:
        os.kill(command.process.pid or 0, blow)
    code, _, err = command.end()
    return code, err


def test_an_audit_and_a_repair_killed_at_random_moments_finish_later(folder: Path, tmp_path: Path) -> None:
    draws = random.Random(0)
    for name, words in {"audit": (folder, *QUICK), "repair": (folder, *REPAIR, *QUICK)}.items():
        begun = time.monotonic()
        code, _, err = run(tmp_path / f"calm {name}", name, *words, "--out", tmp_path / f"calm {name} out")
        took = time.monotonic() - begun
        assert code == 0, err
        cache, out = tmp_path / f"struck {name}", tmp_path / f"struck {name} out"
        for _ in range(5):
            code, err = struck(cache, (name, *words, "--out", out), draws.uniform(0.1, 0.9) * took, signal.SIGKILL)
            assert code in (-9, 0)
            said(err)
        code, _, err = run(cache, name, *words, "--out", out)
        assert code == 0, err
        assert measured(out / "report.json") == measured(tmp_path / f"calm {name} out" / "report.json")
        assert load(out / "subject").name == "digits" if name == "repair" else not (out / "subject").exists()
        hidden = [p for p in leftovers(out) if not p.startswith(".")]
        assert hidden == []


def test_an_interrupt_at_any_moment_is_one_line_and_130(folder: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run(tmp_path / "c", "audit", folder, *QUICK)[0] == 0
    took = time.monotonic() - begun
    codes = []
    for share in (0.2, 0.4, 0.6, 0.8):
        code, err = struck(tmp_path / f"c{share}", ("audit", folder, *QUICK), share * took, signal.SIGINT)
        codes.append(code)
        assert code in (130, 0)
        assert code == 0 or said(err)[-1].startswith("assay: interrupted;")
    assert 130 in codes


def test_an_interrupt_while_modules_are_imported_is_one_line_and_130(tmp_path: Path) -> None:
    ready = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = ready + MAIN.replace("main()", "print('up', flush=True)\nmain()")  # before that, nobody could answer
    for wait in (0.05, 0.4, 0.8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "audit"], env=environment(tmp_path), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode == 130


def test_what_a_killed_run_left_goes_after_an_hour(tmp_path: Path) -> None:
    old, fresh, mine = tmp_path / ".report.html.abcdefgh", tmp_path / ".report.json.abcdefgh", tmp_path / "notes.txt"
    half = tmp_path / ".subject.abcdefgh"
    (half / "subject").mkdir(parents=True)
    for path in (old, fresh, mine):
        path.write_text("half")
    for path in (old, half, mine):
        os.utime(path, (0, 0))
    claim("--out", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [fresh.name, mine.name]


def test_who_reads_the_reports_reads_the_subject(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    keep_subject(load(folder), tmp_path)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "subject").iterdir()}
    assert (modes, (tmp_path / "subject").stat().st_mode & 0o777) == ({0o644}, 0o755)


def test_a_subject_is_replaced_only_by_a_whole_one(digits: Subject, folder: Path, tmp_path: Path) -> None:
    keep_subject(load(folder), tmp_path)
    first = {p.name: p.read_bytes() for p in (tmp_path / "subject").iterdir()}

    def fill() -> None:
        for _ in range(5):
            keep_subject(digits, tmp_path)

    others = [threading.Thread(target=fill) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert {p.name: p.read_bytes() for p in (tmp_path / "subject").iterdir()} == first
    assert [p.name for p in tmp_path.iterdir()] == ["subject"]
