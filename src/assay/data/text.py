"""Plain texts."""

from __future__ import annotations

import os
from pathlib import Path

from assay.runtime.errors import InputError


def load_text(name: str) -> str:
    """The text ``$ASSAY_DATA/text/NAME.txt`` (UTF-8), such as "tinyshakespeare". Raises InputError where it is not."""
    path = Path(os.environ.get("ASSAY_DATA", "")) / "text" / f"{name}.txt"
    if not path.is_file():
        raise InputError(f"text {name!r}: no {str(path)!r}; expected it there (set ASSAY_DATA)")
    return path.read_text(encoding="utf-8")
