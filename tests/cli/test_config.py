from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay.cli.app import app
from assay.runtime.errors import InputError


def test_a_config_file_gives_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "assay.toml"
    config.write_text('only = "accuracy"\nlimit = 50\nseed = 3\n')
    plain = CliRunner().invoke(app, ["audit", "--config", str(config), "--json"], catch_exceptions=False)
    document = json.loads(plain.stdout)
    assert (list(document["sections"]), document["seed"], document["meta"]["limit"]) == (["accuracy"], 3, 50)
    other = CliRunner().invoke(app, ["audit", "--config", str(config), "--seed", "4", "--json"], catch_exceptions=False)
    assert json.loads(other.stdout)["seed"] == 4


@pytest.mark.parametrize(
    ("text", "message"), [("limt = 5", "did you mean 'limit'"), ("limit =", "not valid TOML"), (None, "No such file")]
)
def test_a_bad_config_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    config = tmp_path / "assay.toml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["audit", "--config", str(config)], catch_exceptions=False)
