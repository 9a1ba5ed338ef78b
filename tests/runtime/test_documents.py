"""Documents say what json says, with numbers side by side."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.runtime import documents

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=30)


@given(VALUES)
def test_what_is_read_back_is_what_was_written(value: object) -> None:
    assert json.loads(documents.dumps(value)) == value


def test_numbers_share_a_line_and_nothing_else_does() -> None:
    text = documents.dumps({"a": [1, -2.5e-07, None, True], "b": [[1], ["1,\n 2"]], "c": []})
    assert text == '{\n "a": [1, -2.5e-07, null, true],\n "b": [\n  [1],\n  [\n   "1,\\n 2"\n  ]\n ],\n "c": []\n}'
    with pytest.raises(ValueError, match="JSON"):
        documents.dumps([float("nan")])
