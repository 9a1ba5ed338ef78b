"""What a reader must not do: start programs, open connections, change files outside its folder, warn, print."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class")
CHANGING = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)  # Python shows none of these to users


class Watch:
    """``with Watch(folder):`` raises AssertionError where the block did any of these."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.on = folder, list[str](), False
        self.caught = warnings.catch_warnings(record=True)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGING) and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((str(self.folder.resolve()), "/dev/null")) and not path.endswith(
                (".pyc", "__pycache__")
            ):
                self.seen.append(f"{event} {path}")

    def __enter__(self) -> Watch:
        self.seen.clear()
        self.caught = warnings.catch_warnings(record=True)
        self.shown = self.caught.__enter__()
        self.printed = io.StringIO()
        self.streams = contextlib.redirect_stdout(self.printed)
        self.streams.__enter__()
        warnings.simplefilter("always")
        self.on = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on = False
        self.streams.__exit__(kind, error, trace)
        self.caught.__exit__(kind, error, trace)
        shown = [str(w.message) for w in self.shown or () if not issubclass(w.category, HIDDEN)]
        if kind is None:
            assert not self.seen, f"touched: {self.seen}"
            assert not shown, f"warned: {shown}"
            assert not self.printed.getvalue(), f"printed: {self.printed.getvalue()[:200]}"
