"""The recorded runs below a folder. A request names a run by its key and never by a path."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from assay.gates.evidence import Evidence, evidence, read_report
from assay.runtime.errors import InputError

MOST, DEPTH, BYTES = 2000, 8, 64 << 20


@dataclass(frozen=True)
class Run:
    """A folder with a ``report.json``: what it records, or the problem that makes it unreadable."""

    key: str
    name: str
    folder: Path
    written: str
    evidence: Evidence | None = None
    problem: str = ""


def find(root: Path) -> list[Run]:
    """Every run below ``root``, by name: at most 2,000, eight folders deep; links to elsewhere are not followed."""
    found: list[Run] = []
    for folder, below, files in os.walk(root):
        here = Path(folder)
        depth = len(here.relative_to(root).parts)
        below[:] = sorted(b for b in below if not b.startswith(".")) if depth < DEPTH else []
        if "report.json" in files:
            found.append(_run(root, here))
        if len(found) == MOST:
            break
    return sorted(found, key=lambda r: r.name)


def _run(root: Path, folder: Path) -> Run:
    relative = folder.relative_to(root)
    name = os.fsencode(relative.as_posix() if relative.parts else root.resolve().name).decode("utf-8", "replace")
    key = hashlib.sha256(os.fsencode(relative)).hexdigest()[:16]
    try:
        file = inside(root, folder / "report.json")
        status = file.stat()
        written = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
        return Run(key, name, folder, written, _read(file, status.st_mtime_ns, status.st_size))
    except InputError as error:
        return Run(key, name, folder, "", problem=str(error).removeprefix(f"{folder / 'report.json'}: "))
    except OSError as error:
        return Run(key, name, folder, "", problem=error.strerror or type(error).__name__)


def inside(root: Path, path: Path) -> Path:
    """``path`` with links resolved; InputError unless it is a plain file of at most 64 MB inside ``root``."""
    try:
        whole = path.resolve(strict=True)
    except RuntimeError as error:  # what OSError of a loop becomes before Python 3.13
        raise InputError(f"{path}: a link to itself; expected a file inside the folder of runs") from error
    if not whole.is_relative_to(root.resolve()):
        raise InputError(f"{path}: links out of the folder of runs; expected a file inside it")
    status = whole.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > BYTES:
        raise InputError(f"{path}: no plain file of at most {BYTES >> 20} MB; expected a report that assay wrote")
    return whole


@functools.lru_cache(maxsize=MOST)
def _read(file: Path, changed: int, size: int) -> Evidence:
    """The evidence of a file; ``changed`` and ``size`` make it read again when it is another."""
    return evidence(read_report(file), file.parent.name)
