"""The folder of reports: report.html, report.json, report.md and metrics.parquet, each whole or not written at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from assay.audit.result import Audit, Effects
from assay.report.html import page
from assay.report.markdown import card
from assay.report.tidy import parquet, rows
from assay.runtime import documents
from assay.runtime.errors import InputError
from assay.runtime.files import write_whole


def save(result: Audit | Effects, folder: Path) -> Path:
    """Write the reports into ``folder`` (made when absent), return it; InputError when it cannot be written."""
    texts = {"report.html": page(result), "report.json": document(result), "report.md": card(result)}
    files = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    files["metrics.parquet"] = parquet(rows(plain(result.to_dict()), folder.resolve().name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{folder}: cannot be written ({reason}); expected a folder to write reports into") from error
    return folder


def document(result: Audit | Effects) -> str:
    """The result as strict JSON, schema ``assay/1``: as ``to_json``, with null for what is not finite."""
    return documents.dumps(plain(result.to_dict()))


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
