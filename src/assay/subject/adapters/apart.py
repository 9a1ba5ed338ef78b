"""A model whose library trusts its file: it runs in a process of its own, which may die without taking the run along.

XGBoost and LightGBM read a file in native code that does not check what it says: most damaged LightGBM files abort the
process and some of XGBoost's make it read memory that is not its own.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from assay.runtime.errors import InputError

SERVER = Path(__file__).with_name("tree_server.py")
SECONDS = 120.0  # for one answer: a damaged tree can be one that never ends


class Apart:
    """``Apart(kind, path, where)`` starts the model; ``about`` is what it says of itself; called, it answers rows.

    Each side sends a line with the length of what follows (this side: the length alone; the other: "about", "answer" or
    "error" before it), then JSON, an npy array or a message. Raises InputError where the model cannot be read or asked,
    and where its process dies or takes longer than ``SECONDS``.
    """

    def __init__(self, kind: str, path: Path, where: str) -> None:
        self.where, self.late = where, False
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), kind, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is the run's own business
        )
        weakref.finalize(self, _end, self.process)
        self.about: dict[str, Any] = json.loads(self._answer())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The model's answers to the rows ``x`` (n, d)."""
        buffer = io.BytesIO()
        np.save(buffer, x)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{buffer.tell()}\n".encode() + buffer.getvalue())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        answers: np.ndarray = np.load(io.BytesIO(self._answer()), allow_pickle=False)
        return answers

    def _answer(self) -> bytes:
        assert self.process.stdout is not None
        clock = threading.Timer(SECONDS, self._kill)
        clock.start()
        try:
            kind, _, length = self.process.stdout.readline().partition(b" ")
            content = self.process.stdout.read(int(length or 0))
        finally:
            clock.cancel()
        if kind == b"error":
            said = " ".join(content.decode("utf-8", "replace").split())
            raise InputError(f"{self.where}: cannot be read ({said}); expected what Booster.save_model writes")
        if not kind or len(content) < int(length):
            raise self._dead()
        return content

    def _kill(self) -> None:
        self.late = True
        self.process.kill()

    def _dead(self) -> InputError:
        code = self.process.wait()
        why = f"ended with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        why = f"gave no answer within {SECONDS:g} s" if self.late else why
        return InputError(f"{self.where}: its library {why}; expected what Booster.save_model writes")


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.kill()
    process.wait()
