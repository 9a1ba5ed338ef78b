"""JSON documents that people read too."""

from __future__ import annotations

import json
import re
from typing import Any

_NUMBER = r"(?:-?\d[\d.eE+-]*|true|false|null)"
_NUMBERS = re.compile(rf"\[\n\s*({_NUMBER}(?:,\n\s*{_NUMBER})*)\n\s*\]")  # no string holds a line break

_BREAK = re.compile(r",\n\s*")


def dumps(document: Any) -> str:
    """``document`` as JSON, indented, each list of numbers on one line. Raises ValueError for NaN and infinity."""
    text = json.dumps(document, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + _BREAK.sub(", ", found[1]) + "]", text)
