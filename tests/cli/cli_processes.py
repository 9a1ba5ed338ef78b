"""What the tests of the command line share: how a command ended, and commands as processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import assay

MAIN = "from assay.cli import main; main()"
PROGRESS = re.compile(r"assay: (loading |auditing |\d+/\d+ )")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line that says why, once the lines of progress are taken away."""
        lines = self.err.splitlines()
        assert all(line.startswith("assay: ") for line in lines), self.err
        told = [i for i, line in enumerate(lines) if not PROGRESS.match(line)]
        assert told == [len(lines) - 1], self.err
        return lines[-1]


Cli = Callable[..., Ran]


def environment(cache: Path) -> dict[str, str]:
    """What a process of its own needs: this code, its own store, one thread."""
    source = str(Path(assay.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "ASSAY_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def start(cache: Path, *words: object, code: str = MAIN) -> subprocess.Popen[str]:
    """The command as a process of its own that an interrupt reaches, also where the tests themselves ignore them."""
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    command = [sys.executable, "-c", code, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(cache), stdout=pipe, stderr=pipe, text=True)
