"""The folders of ``--out`` and ``--junit``: seen to be writable before the work, and never left with half a subject."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from assay.runtime.errors import InputError
from assay.runtime.store import STALE
from assay.subject import Subject
from assay.subject.load import discard, exchange

LEFT = (".report.*.????????", ".metrics.parquet.????????", ".subject.????????")


def claim(option: str, out: Path) -> None:
    """Make ``out``, or InputError where nothing can be written into it; what killed runs left behind goes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            _clear(out)
    except OSError as error:
        raise InputError(f"{option} {out}: {error.strerror}; expected a folder that can be written") from error


def _clear(out: Path) -> None:
    for path in (p for name in LEFT for p in out.glob(name)):
        with contextlib.suppress(FileNotFoundError):  # another run has just finished it
            if time.time() - path.stat().st_mtime > STALE:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def claim_subject(out: Path) -> Path:
    """The folder ``out/subject``; InputError where something else than a subject is in its place."""
    folder = out / "subject"
    if folder.exists() and not (folder / "subject.toml").is_file():
        raise InputError(f"{folder}: exists and is no subject; expected none there, or one to replace")
    return folder


def keep_subject(subject: Subject, out: Path) -> None:
    """Write ``subject`` to ``out/subject``; a subject that is there is exchanged for the new one once that is whole."""
    from safetensors import SafetensorError

    folder = claim_subject(out)
    try:
        work = Path(tempfile.mkdtemp(prefix=".subject.", dir=out))
        try:
            saved = subject.save(work / "subject")
            mode = out.stat().st_mode & 0o777
            for path in saved.iterdir():  # whoever may read the reports may read the subject
                path.chmod(mode & 0o666)
            saved.chmod(mode)
            exchange(saved, folder, work)
        finally:
            discard(work, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{folder}: cannot be written ({reason}); expected space and write access") from error
