"""Markdown."""

from __future__ import annotations

import re


def escape(text: str) -> str:
    """One line of Markdown that shows ``text`` as it is: no markup, no HTML, no new cell."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", line)
