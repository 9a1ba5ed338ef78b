"""Any combination of options ends with exit code 0, 1, 2 or 130, and never with a traceback."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import methods
from assay.cli import main
from assay.runtime.errors import InputError
from assay.runtime.executor import Work, run_shared
from assay.runtime.method import configure
from assay.subject import Subject

STRANGE = ["", "0", "-1", "1e999", "nan", "9" * 30, "²", "x" * 5000, "a\x1b[31mb", "\u202e", "../..", "~x", "\udcff"]
KNOWN = [
    "class=1",
    "digits",
    "npz:/no",
    "hf:",
    "onnx:",
    "http://",
    "accuracy",
    "quick",
    "ray://",
    "cpu",
    "a,b",
    ":",
    "@",
]
ODD = st.sampled_from([*STRANGE, *KNOWN])
NUMBERS = st.one_of(st.integers(-(2**70), 2**70).map(str), st.floats().map(str), ODD)
TEXT = st.one_of(ODD, st.text(st.characters(exclude_characters="\0"), max_size=20))
FLAGS = {
    "audit": ["--plan", "--json"], "repair": ["--no-control", "--json"], "compare": ["--json"], "methods": ["--json"],
    "papers": ["--json"], "check": ["--json", "--markdown"], "reproduce": ["--json", "--record"],
}  # fmt: skip
VALUES = {
    "--limit": NUMBERS, "--seed": NUMBERS, "--jobs": NUMBERS, "--seeds": NUMBERS, "--data": TEXT, "--holdout": TEXT,
    "--train": TEXT, "--profile": TEXT, "--only": TEXT, "--device": TEXT, "--on": TEXT, "--config": TEXT,
    "--require": TEXT, "--trust": TEXT, "--with": TEXT, "--forget": TEXT, "--room": TEXT, "--kind": TEXT,
    "--search": TEXT, "--status": TEXT, "--scale": TEXT, "--bogus": TEXT,
}  # fmt: skip
COMMON = ["--limit", "--seed", "--jobs", "--only", "--config", "--require"]
OPTIONS = {
    "audit": [*COMMON, "--data", "--holdout", "--train", "--profile", "--device", "--on", "--trust", "--bogus"],
    "repair": [*COMMON, "--seeds", "--with", "--forget"],
    "compare": ["--limit", "--seed", "--only", "--trust"],
    "methods": ["--room", "--kind"],
    "papers": ["--search", "--room", "--kind", "--status"],
    "check": ["--require", "--bogus"],
    "reproduce": ["--scale", "--seed", "--jobs", "--on"],
}


def ended(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of the command."""
    err = io.StringIO()
    streams = contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO())
    with mock.patch.object(sys, "argv", ["assay", *words]), streams[0], streams[1], pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), err.getvalue()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, digits: Subject) -> str:
    return str(digits.save(tmp_path_factory.mktemp("options") / "s"))


@settings(max_examples=80)
@given(st.data())
def test_any_options_end_well(bare: str, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(sorted(OPTIONS)))
    words = [command, *data.draw(st.lists(st.one_of(TEXT, st.just(bare)), max_size=2))]
    for name in data.draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=3, unique=True)):
        words += [name, data.draw(VALUES[name])]
    words += data.draw(st.lists(st.sampled_from(FLAGS[command]), max_size=2, unique=True))
    if command == "audit" and "--plan" not in words:
        words += ["--plan"]  # what runs is tested elsewhere, and takes longer
    code, err = ended(words)
    assert code in (0, 1, 2, 130)
    assert "Traceback" not in err
    assert code != 2 or err.splitlines()[-1].startswith("assay: ") or len(err.splitlines()) > 1
    assert "\x1b" not in err


def refusal(cls: type, given: dict[str, str]) -> str | None:
    """What is said about the options of a method; None where they are taken."""
    try:
        configure(cls, given)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "cls"), methods.exported().items())
def test_options_of_every_method_are_taken_or_refused_in_a_line(name: str, cls: type) -> None:
    assert refusal(cls, {"no_such_option": "1"})
    for value in ("", "nan", "1e999", "-1", "9" * 400, "1+2", "none", "x"):
        for option in list(getattr(cls, "__dataclass_fields__", {}))[:4]:
            assert "\n" not in (refusal(cls, {option: value}) or ""), (name, option, value)


def test_jobs_beyond_the_tasks_start_no_more_workers(
    bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    asked: list[int] = []

    def noted(works: list[Work], shared: dict[str, object], *, on: str, jobs: int) -> Iterator[tuple[int, object]]:
        asked.append(jobs)
        return run_shared(works, shared, on=on, jobs=min(jobs, 1))

    monkeypatch.setattr("assay.audit.run.run_shared", noted)
    code, err = ended(["audit", bare, "--only", "accuracy,subgroups", "--limit", "60", "--jobs", "1000000"])
    assert (code, asked[-1]) == (0, 2), err
    assert ended(["audit", bare, "--only", "accuracy", "--limit", "60", "--jobs", "-3"])[0] == 2
