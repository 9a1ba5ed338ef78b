"""The folder of reports: report.html, report.json and report.md, each written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from assay.audit.result import Audit, Effects
from assay.report.html import page
from assay.report.markdown import card
from assay.runtime.errors import InputError


def save(result: Audit | Effects, folder: Path) -> Path:
    """Write the three reports into ``folder`` (made when absent), return it; InputError when it cannot be written."""
    texts = {"report.html": page(result), "report.json": document(result), "report.md": card(result)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{folder}: cannot be written ({reason}); expected a folder to write reports into") from error
    return folder


def document(result: Audit | Effects) -> str:
    """The result as strict JSON, schema ``assay/1``: as ``to_json``, with null for what is not finite."""
    return json.dumps(plain(result.to_dict()), indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """``value`` in JSON's own types; arrays become lists, non-finite numbers null."""
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
