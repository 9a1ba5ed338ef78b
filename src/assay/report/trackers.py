"""Experiment trackers, offline: metrics, options and report files in MLflow's or Weights & Biases' own store.

MLflow writes where MLFLOW_TRACKING_URI says, else to ./mlruns; Weights & Biases under WANDB_DIR, else ./wandb, and
``wandb sync`` sends a run from there later. Names of metrics are written in the characters that each tracker allows
(``written``), and can be read back (``read``), but for those of more than 250 characters in MLflow, which are cut and
end with a part of their hash. The ends of an interval are metrics too, with ``.low`` and ``.high``
after the name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assay.audit.result import Audit, Effects
from assay.report.files import plain, save
from assay.report.tidy import rows
from assay.runtime.errors import InputError, unknown

TRACKERS = ("mlflow", "wandb")
PROJECT = "assay"
BATCH, LONGEST, LONGEST_NAME = 500, 500, 250
PARAMETERS = ("task", "data", "model", "access", "limit", "weights", "assay", "torch", "numpy", "python", "machine")
# What each tracker allows in the name of a metric, and the sign that encloses the code of every other character.
ALLOWED = {"mlflow": ("A-Za-z0-9_.-", ":"), "wandb": ("A-Za-z0-9", "_")}


def written(name: str, tracker: str) -> str:
    """A metric's name in the characters that ``tracker`` allows: every other one as its code point in hexadecimal.

    ``accuracy@0.1`` is ``accuracy:40:0.1`` in MLflow and ``accuracy_40_0_2e_1`` in Weights & Biases.
    """
    kept, mark = ALLOWED[tracker]
    text = re.sub(f"[^{kept}]", lambda m: f"{mark}{ord(m[0]):x}{mark}", name)
    # A Weights & Biases name does not start with a digit.
    return f"_{ord(text[0]):x}_{text[1:]}" if tracker == "wandb" and text[:1].isdigit() else text


def read(name: str, tracker: str) -> str:
    """The metric's name of a tracker's: the inverse of ``written``."""
    mark = ALLOWED[tracker][1]
    return re.sub(f"{mark}([0-9a-f]+){mark}", lambda m: chr(int(m[1], 16)), name)


def check(tracker: str) -> None:
    """InputError where ``tracker`` is unknown or cannot be used: before the work, not after it."""
    if tracker not in TRACKERS:
        raise unknown("tracker in --log:", tracker, TRACKERS)
    if tracker == "mlflow":
        with _mlflow():
            pass
    else:
        _wandb()
        folder = _wandb_folder()
        if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
            raise InputError(f"--log wandb: {folder}: cannot be written; expected a writable folder (WANDB_DIR)")


def log(result: Audit | Effects, tracker: str, folder: Path | None = None) -> str:
    """Log a result, and say where. ``folder`` holds its reports; None writes them for the tracker alone.

    Raises InputError where the tracker is unknown, not installed or refuses its store.
    """
    if tracker not in TRACKERS:
        raise unknown("tracker in --log:", tracker, TRACKERS)
    document = plain(result.to_dict())
    values, options = _values(document, tracker), _options(document)
    with tempfile.TemporaryDirectory(prefix="assay-") as temporary:
        files = sorted(p for p in (folder or save(result, Path(temporary) / "report")).iterdir() if _is_report(p))
        if tracker == "mlflow":
            return _to_mlflow(result.name, values, options, files)
        return _to_wandb(result.name, values, options, files, rows(document, result.name))


def _is_report(path: Path) -> bool:
    return path.name in ("report.html", "report.json", "report.md", "metrics.parquet")


def _values(document: Mapping[str, Any], tracker: str) -> dict[str, float]:
    """Every resolved number by its written name; of a repair, ``STAGE/NAME`` but for what is measured after it."""
    values = {}
    for row in rows(document, ""):
        stage = {"audit": "", "after": "", "step": f"step{row['step']}/"}.get(row["stage"], f"{row['stage']}/")
        for end, key in (("", "value"), (".low", "low"), (".high", "high")):
            if row[key] is not None:
                values[_placed(stage, f"{row['metric']}{end}", tracker)] = float(row[key])
    return values


def _placed(stage: str, name: str, tracker: str) -> str:
    """The written name within a stage. MLflow keeps names as files: only the stage is a folder, 250 signs the most."""
    if tracker != "mlflow":
        return written(stage + name, tracker)
    text = stage + written(name, tracker)
    if len(text) <= LONGEST_NAME:
        return text
    mark = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{text[: LONGEST_NAME - len(mark) - 3]}...{mark}"


def _options(document: Mapping[str, Any]) -> dict[str, str]:
    audit = document if document["kind"] == "audit" else document["steps"][-1]["audit"]
    found = {k: audit["meta"][k] for k in PARAMETERS if audit["meta"].get(k) is not None}
    if document["kind"] == "effects":
        found["methods"] = "; ".join(document["meta"].get("methods", [s["method"] for s in document["steps"]]))
    return {k: str(v)[:LONGEST] for k, v in {"profile": audit["profile"], "seed": audit["seed"], **found}.items()}


@contextmanager
def _offline() -> Iterator[None]:
    """Both libraries report their use over the network unless told not to; what the user has set stays.

    MLflow 3 refuses a folder as its store, too, until it is told that this is meant.
    """
    wanted = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _mlflow() -> Iterator[Any]:
    """MLflow's client on the store that the environment names."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()
    with _offline():
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise InputError("--log mlflow: MLflow is not installed; expected pip install 'assay[track]'") from error
        try:
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
            yield client
        except (MlflowException, ImportError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--log mlflow: {uri}: {reason}; expected a store that MLflow can write "
                "(a database needs the whole mlflow)"
            ) from error


def _to_mlflow(name: str, values: Mapping[str, float], options: Mapping[str, str], files: list[Path]) -> str:
    with _mlflow() as client:
        from mlflow.entities import Metric, Param

        experiment = client.get_experiment_by_name(PROJECT)
        key = experiment.experiment_id if experiment is not None else client.create_experiment(PROJECT)
        run = client.create_run(key, run_name=name)
        metrics = [Metric(k, v, run.info.start_time, 0) for k, v in values.items()]
        for k in range(0, len(metrics), BATCH):
            client.log_batch(run.info.run_id, metrics=metrics[k : k + BATCH])
        client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in options.items()])
        for file in files:
            client.log_artifact(run.info.run_id, str(file))
        client.set_terminated(run.info.run_id)
        return f"mlflow run {run.info.run_id} ({os.environ.get('MLFLOW_TRACKING_URI') or './mlruns'})"


def _wandb() -> Any:
    try:
        with _offline():
            import wandb
    except ImportError as error:
        raise InputError(
            "--log wandb: Weights & Biases is not installed; expected pip install 'assay[track]'"
        ) from error
    return wandb


def _wandb_folder() -> Path:
    return Path(os.environ.get("WANDB_DIR") or ".").resolve()


def _to_wandb(
    name: str, values: Mapping[str, float], options: Mapping[str, str], files: list[Path], table: list[dict[str, Any]]
) -> str:
    """One offline run. Files lie in its folder, so that it can be moved to another machine and synced there."""
    wandb = _wandb()
    # standard output belongs to the audit: nothing of the process is captured
    settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
    folder = _wandb_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _offline():
            run = wandb.init(
                project=PROJECT, name=name, mode="offline", dir=str(folder), config=dict(options), settings=settings
            )
        try:
            run.summary.update(values)
            columns = ["stage", "metric", "value", "low", "high", "n", "unit", "better"]
            cells = [[row[c] for c in columns] for row in table]
            run.log({"metrics": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})
            for file in files:
                shutil.copy(file, run.dir)
            return f"wandb run {run.id} ({Path(run.dir).parent})"
        finally:
            run.finish()
    except (wandb.errors.Error, OSError) as error:
        raise InputError(f"--log wandb: {' '.join(str(error).split())[:200]}; expected a writable store") from error
