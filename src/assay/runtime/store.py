"""The result store: content-addressed archives of plain arrays. Writes are atomic; old entries go when it is full."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay.runtime.errors import InputError

LIMIT = 2 << 30
STALE = 3600.0


def key_of(**parts: Any) -> str:
    """The key of a result: a hash of everything that it depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _stat(path: Path) -> os.stat_result | None:
    """None when another process has just removed it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


class Store:
    """A folder of npz archives named by key: ``$ASSAY_CACHE``, else the platform's cache folder."""

    def __init__(self, root: str | Path | None = None, limit: int = LIMIT) -> None:
        chosen = root or os.environ.get("ASSAY_CACHE")
        if chosen is None:
            from platformdirs import user_cache_dir

            chosen = user_cache_dir("assay")
        self.root, self.limit = Path(chosen), limit
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"result store {self.root}: {error.strerror}; expected a writable folder (ASSAY_CACHE)"
            ) from error

    def path(self, key: str) -> Path:
        """Where the archive of ``key`` lies."""
        return self.root / key[:2] / f"{key}.npz"

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under ``key``; None when there are none or the archive is damaged (it is then removed)."""
        path = self.path(key)
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception:  # a damaged archive makes its readers raise anything
            path.unlink(missing_ok=True)
            return None
        return arrays

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"result store {self.root}: {error.strerror}; expected space and write access") from error
        self._trim()

    def _trim(self) -> None:
        for path in self.root.glob("*/*.tmp"):  # a killed process leaves its unfinished file
            stat = _stat(path)
            if stat is not None and time.time() - stat.st_mtime > STALE:
                path.unlink(missing_ok=True)
        entries = [(s, p) for p in self.root.glob("*/*.npz") if (s := _stat(p)) is not None]
        excess = sum(s.st_size for s, _ in entries) - self.limit
        for stat, path in sorted(entries, key=lambda e: e[0].st_mtime):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= stat.st_size
