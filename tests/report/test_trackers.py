"""Both trackers for real, offline: what was measured can be read back from their own stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import assay
from assay.audit.property import Section
from assay.audit.result import Audit, Effects
from assay.report import trackers
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric

FILES = {"metrics.parquet", "report.html", "report.json", "report.md"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and home, and the trackers' stores beside them."""
    for name in ("here", "home", "store"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "store"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path / "store"


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1), st.sampled_from(trackers.TRACKERS))
def test_names_can_be_read_back_and_hold_only_what_is_allowed(name: str, tracker: str) -> None:
    text = trackers.written(name, tracker)
    assert trackers.read(text, tracker) == name
    if tracker == "wandb":
        assert text.isascii()
        assert text.isidentifier()
    else:
        assert all(c.isascii() and (c.isalnum() or c in "_./-:") for c in text)


def test_common_names_stay_readable() -> None:
    assert trackers.written("calibration.ece", "mlflow") == "calibration.ece"
    assert trackers.written("accuracy@0.1", "mlflow") == "accuracy:40:0.1"
    assert trackers.written("accuracy@0.1", "wandb") == "accuracy_40_0_2e_1"


def test_mlflow_holds_metrics_intervals_options_and_reports(audit: Audit, store: Path) -> None:
    from mlflow import MlflowClient

    trackers.check("mlflow")
    place = trackers.log(audit, "mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(tracking_uri=store.as_uri())
        experiment = client.get_experiment_by_name("assay")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert run.info.run_id in place
    assert (run.info.status, run.info.run_name, files) == ("FINISHED", audit.name, FILES)
    logged = {trackers.read(k, "mlflow"): v for k, v in run.data.metrics.items()}
    for name, m in audit.metrics.items():
        for end, key in (("", "value"), (".low", "low"), (".high", "high")):
            expected = m.to_dict()[key]
            assert logged.get(name + end) == expected, name + end
    assert run.data.params["profile"] == "quick"
    assert run.data.params["data"] == "digits:test"
    assert not list((store.parent / "here").iterdir())
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_mlflow_reports_nothing_of_its_use(store: Path) -> None:
    code = "from assay.report import trackers; trackers.check('mlflow')"
    env = {**os.environ, "PYTHONPATH": str(Path(assay.__file__).parents[1])}
    for name in ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
        env.pop(name, None)  # where MLflow stays silent by itself
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False, timeout=120).returncode == 0
    assert not list((store.parent / "home").rglob("telemetry*"))


def test_mlflow_keeps_the_stages_of_a_repair_apart(effects: Effects, store: Path, tmp_path: Path) -> None:
    trackers.log(effects, "mlflow", effects.save(tmp_path / "saved"))
    (params,) = store.glob("*/*/params/methods")
    assert params.read_text() == "one; two"
    metrics = params.parents[1] / "metrics"
    for stage in ("before", "after", "control", "difference", "step1"):
        file = metrics / ("" if stage == "after" else stage) / "calibration.ece"
        assert file.exists(), stage
    value = float((metrics / "difference" / "calibration.ece").read_text().split()[1])
    assert value == pytest.approx(effects["calibration.ece"].difference)


def test_wandb_writes_one_offline_run_that_can_be_moved(audit: Audit, store: Path) -> None:
    trackers.check("wandb")
    place = trackers.log(audit, "wandb")
    (run,) = (store / "wandb").glob("offline-run-*")
    assert str(run) in place
    assert {p.name for p in (run / "files").iterdir()} >= FILES
    assert not any(p.is_symlink() for p in (run / "files").iterdir())
    (table,) = run.glob("files/media/table/*.json")
    kept = json.loads(table.read_text())
    rows = [dict(zip(kept["columns"], row, strict=True)) for row in kept["data"]]
    assert [r["metric"] for r in rows] == list(audit.metrics)
    assert rows[0]["value"] == next(iter(audit.metrics.values())).value
    (log,) = run.glob("*.wandb")
    assert trackers.written("calibration.ece.low", "wandb").encode() in log.read_bytes()
    assert not list((store.parent / "here").iterdir())


def test_what_cannot_be_logged_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean 'mlflow'"):
        trackers.check("mlflo")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(InputError, match="--log mlflow: nonsense://x") as error:
        trackers.check("mlflow")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for tracker in trackers.TRACKERS:
        with pytest.raises(InputError, match=r"pip install 'assay\[track\]'"):
            trackers.check(tracker)


def test_mlflow_takes_classes_of_any_name(store: Path) -> None:
    from mlflow import MlflowClient

    names = ["n", "n/a", "a//b", "end/", "x" * 300, "x" * 301]
    metrics = [Metric(f"accuracy.class.{name}", 0.5, 0.4, 0.6) for name in names]
    named = Audit("s", "quick", 0, {"accuracy": Section(metrics=metrics)}, {"accuracy": "Accuracy"})
    place = trackers.log(named, "mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        found = MlflowClient(tracking_uri=store.as_uri()).get_run(place.split()[2]).data.metrics
    assert len(found) == 3 * len(names)
    assert max(map(len, found)) == 250
    assert found[trackers.written("accuracy.class.n/a", "mlflow")] == 0.5
