"""Texts of the data folder."""

from pathlib import Path

import pytest

from assay.data import load_text
from assay.runtime.errors import InputError


def test_a_text_is_read_and_a_missing_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "poem.txt").write_text("Rosé\n", encoding="utf-8")
    monkeypatch.setenv("ASSAY_DATA", str(tmp_path))
    assert load_text("poem") == "Rosé\n"
    with pytest.raises(InputError, match="novel"):
        load_text("novel")
    monkeypatch.delenv("ASSAY_DATA")
    with pytest.raises(InputError, match="ASSAY_DATA"):
        load_text("poem")
