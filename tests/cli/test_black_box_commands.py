"""Models of other kinds on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skops.io
from cli_processes import Cli
from sklearn.linear_model import LogisticRegression

from assay.data import load_data

WARNING = "ignore::sklearn.exceptions.ConvergenceWarning"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    train, path = load_data("digits:train"), tmp_path_factory.mktemp("sklearn") / "m.skops"
    skops.io.dump(LogisticRegression(max_iter=30).fit(train.x.flatten(1).numpy(), train.y.numpy()), path)
    return f"sklearn:{path}"


@pytest.mark.filterwarnings(WARNING)
def test_a_classifier_is_audited_and_reported(cli: Cli, classifier: str, tmp_path: Path) -> None:
    only = "accuracy,calibration,compression"
    ran = cli("audit", classifier, "--data", "digits", "--only", only, "--limit", 60, "--out", tmp_path, "--json")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert document["name"] == "sklearn:m.skops"
    assert document["meta"]["access"] == "SCORE"
    assert document["sections"]["compression"]["skipped"] == "needs WEIGHTS access; the subject grants SCORE"
    assert "sklearn:m.skops" in (tmp_path / "report.html").read_text()


@pytest.mark.filterwarnings(WARNING)
def test_a_repair_around_a_black_box_is_reported_though_it_is_not_saved(
    cli: Cli, classifier: str, tmp_path: Path
) -> None:
    words = ("repair", classifier, "--data", "digits", "--with", "calibrate.TemperatureScaling", "--no-control")
    ran = cli(*words, "--only", "calibration", "--limit", 100, "--out", tmp_path)
    assert ran.code == 0
    assert "the repaired model is not saved" in ran.err
    assert (tmp_path / "report.json").is_file()
    assert not (tmp_path / "subject").exists()


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("onnx:absent.onnx", "assay: subject onnx:absent.onnx: no such file; expected onnx:FILE"),
        ("http://user:s3cret@127.0.0.1:9/x#retries=0", "assay: http endpoint: no answer (ConnectError) in 1 attempts"),
    ],
)
def test_bad_subjects_are_one_line_without_secrets(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, subject: str, message: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ran = cli("audit", subject, "--data", "digits")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith(message)
    assert len(ran.err.splitlines()) == 2
    assert "s3cret" not in ran.err + ran.out
