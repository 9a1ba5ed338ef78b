"""A small saved subject, so that a process starts to work at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.subject import Subject


@pytest.fixture(scope="session")
def folder(digits: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded subject, saved."""
    return digits.save(tmp_path_factory.mktemp("faults") / "digits")
