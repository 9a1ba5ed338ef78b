"""The command line as processes of its own that are disturbed: killed, interrupted, refused space.

They are forked from a server that has imported everything, because importing takes longer than the work.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import assay

MAIN = "from assay.cli import main\nmain()\n"
QUICK = ("--only", "accuracy,calibration", "--limit", "60")
REPORTS = {"report.html", "report.json", "report.md", "metrics.parquet"}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["assay.cli.work", "assay.report.html", "assay.audit.accuracy", "assay.audit.calibration"]
)


def environment(cache: Path, home: Path | None = None) -> dict[str, str]:
    """For a process that is started anew: this code, its own store, one thread."""
    own = {"PYTHONPATH": str(Path(assay.__file__).parents[1]), "ASSAY_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    kept = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")}
    return {**kept, **own, **({"HOME": str(home)} if home is not None else {})}


def _command(words: list[str], cache: Path, streams: Path, before: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["ASSAY_CACHE"] = str(cache)
    for number in (1, 2):
        os.dup2(os.open(streams / str(number), os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    sys.argv = ["assay", *words]
    if before is not None:
        before()
    from assay.cli import main

    with contextlib.suppress(KeyboardInterrupt):  # one that comes after main has ended
        main()


@dataclass
class Command:
    """A command that runs."""

    process: BaseProcess
    streams: Path

    def end(self) -> tuple[int, str, str]:
        """Wait for it: exit code (negative where a signal ended it) and both streams."""
        self.process.join(120)
        assert self.process.exitcode is not None, "it hangs"
        out, err = ((self.streams / n).read_text(encoding="utf-8") if (self.streams / n).exists() else "" for n in "12")
        shutil.rmtree(self.streams)
        return self.process.exitcode, out, err


def start(cache: Path, *words: object, before: Callable[[], None] | None = None) -> Command:
    """The command, after ``before()`` in its process."""
    streams = Path(tempfile.mkdtemp())
    process = SERVER.Process(target=_command, args=(list(map(str, words)), cache, streams, before))
    process.start()
    return Command(process, streams)


def run(cache: Path, *words: object, before: Callable[[], None] | None = None) -> tuple[int, str, str]:
    """Exit code and both streams of the command."""
    return start(cache, *words, before=before).end()


def said(err: str) -> list[str]:
    """The lines on stderr; all of them are assay's, none of a traceback."""
    lines = err.splitlines()
    assert all(line.startswith("assay: ") for line in lines), err
    return lines


def measured(path: Path) -> Any:
    """What a report says but for times."""
    document = json.loads(path.read_text(encoding="utf-8"))

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    return timeless(document)


def leftovers(root: Path) -> list[str]:
    """Files that are neither reports, subjects nor archives of the store."""
    return [
        str(p.relative_to(root))
        for p in root.rglob("*")
        if p.is_file() and p.name not in REPORTS and p.suffix not in (".npz", ".safetensors", ".toml")
    ]
