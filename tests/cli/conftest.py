"""Runs the command line in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_processes import Cli, Ran

from assay.cli import main
from assay.subject import Subject


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("audit", "digits")`` runs that command here and gives its exit code and both streams."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["assay", *map(str, words)])
            with pytest.raises(SystemExit) as ended:
                main()
        told = capsys.readouterr()
        return Ran(int(ended.value.code or 0), told.out, told.err)

    return run


@pytest.fixture(scope="session")
def folder(digits: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded subject, saved."""
    return digits.save(tmp_path_factory.mktemp("saved") / "digits")
