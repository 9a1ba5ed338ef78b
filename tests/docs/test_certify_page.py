"""The code of the page on certificates runs, in order."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/certify.md"


def test_every_block_runs() -> None:
    pytest.importorskip("transformers")
    found = re.findall(r"(?:<!-- needs (\w+) -->\n)?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(found) == 8
    names: dict[str, Any] = {"__name__": "page"}
    for needs, code in found:
        if not needs or importlib.util.find_spec(needs) is not None:
            exec(compile(code, str(PAGE), "exec"), names)
    assert (names["bounds"]["CROWN"] > 0).sum() > (names["bounds"]["IBP"] > 0).sum()
    assert names["found"].verdict.sum() > 0
