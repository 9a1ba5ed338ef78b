"""The Ray executor on a local cluster: the same results and the same errors as here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_executor import Heavy, mortal, total
from torch import nn

import assay
from assay.audit import audit
from assay.runtime.errors import InputError
from assay.runtime.executor import Work, run_shared
from assay.runtime.store import Store
from assay.subject import Subject

ray: Any = pytest.importorskip("ray", reason="the package ray is not installed (pip install 'assay[ray]')")

TWO = ["accuracy", "calibration"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    source = str(Path(assay.__file__).parents[1])
    paths = [source, str(Path(__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}},
    )
    yield
    ray.shutdown()


class Unfinished(nn.Module):
    """Outputs that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.layer(x.flatten(1)) * float("nan")


def test_ray_measures_what_this_process_measures(digits: Subject, tmp_path: Path) -> None:
    told: list[str] = []
    here = audit(digits, only=TWO, store=Store(tmp_path / "here"))
    there = audit(
        digits,
        only=TWO,
        on="ray",
        store=Store(tmp_path / "there"),
        progress=lambda name, done, total: told.append(name),
    )
    assert sorted(told) == ["", *TWO]
    assert {n: m.to_dict() for n, m in there.metrics.items()} == {n: m.to_dict() for n, m in here.metrics.items()}
    for name, s in here.samples.items():
        assert (there.samples[name].values == s.values).all()
    assert ray.is_initialized()  # a cluster that was running before keeps running


def test_an_error_in_a_task_arrives_as_it_was_raised(digits: Subject, tmp_path: Path) -> None:
    subject = replace(digits, model=Unfinished(), test=digits.test[:50])
    lines = []
    for on in ("local", "ray"):
        with pytest.raises(InputError, match="not finite on 50 of 50") as error:
            audit(subject, only=["accuracy"], on=on, store=Store(tmp_path))
        assert type(error.value) is InputError
        lines.append(str(error.value))
    assert lines[0] == lines[1]


class Elsewhere:
    """A task that no worker can load."""

    def __reduce__(self) -> Any:
        return __import__, ("a_module_of_the_driver_only",)

    def __call__(self) -> None:
        raise AssertionError


def start(task: Any) -> None:
    task()


@pytest.mark.parametrize("task", [lambda: os._exit(1), Elsewhere()])
def test_a_lost_worker_or_task_is_one_line(task: Any) -> None:
    for run in (
        lambda: run_shared([Work(task)], {}, on="ray", retries=0),
        lambda: run_shared([Work(start, ("task",))], {"task": task}, on="ray", retries=0),
    ):
        with pytest.raises(assay.AssayError, match="--on ray: a worker failed") as error:
            list(run())
        assert "\n" not in str(error.value)


def test_parts_on_the_cluster_are_those_of_this_process(digits: Subject, tmp_path: Path) -> None:
    told: list[str] = []
    found = [
        audit(
            digits,
            only=["robustness.linf"],
            limit=150,
            on=on,
            store=Store(tmp_path / on),
            progress=lambda name, *_: told.append(name),
        )
        for on in ("local", "ray")
    ]
    assert told.count("robustness.linf (2 of 3)") == 2
    assert sorted(found[0].samples) == sorted(found[1].samples)
    for name, s in found[0].samples.items():
        assert (found[1].samples[name].values == s.values).all()
        assert (found[1].samples[name].index == s.index).all()


def test_a_killed_worker_repeats_only_its_piece_and_what_is_shared_is_sent_once(tmp_path: Path) -> None:
    assert dict(run_shared(mortal(tmp_path, 1), {}, on="ray")) == {k: k * k for k in range(12)}
    assert (tmp_path / "deaths").read_text() == "x"
    assert sorted(map(int, (tmp_path / "finished").read_text().split())) == list(range(12))
    heavy = Heavy(tmp_path / "log")
    works = [Work(total, ("heavy",), partial(tuple, [k])) for k in range(8)]
    assert dict(run_shared(works, {"heavy": heavy}, on="ray")) == {k: total(heavy, k) for k in range(8)}
    assert heavy.log.read_text() == "sent\n"


class Fragile(nn.Module):
    """Kills the first worker that uses it for the seventh time."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        super().__init__()
        self.inner, self.folder, self.home, self.calls = model, folder, os.getpid(), 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        if os.getpid() != self.home and self.calls > 6 and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)


@pytest.mark.parametrize("on", ["ray", "local"])
def test_an_audit_survives_a_worker_that_is_killed(on: str, digits: Subject, tmp_path: Path) -> None:
    subject = digits.with_model(Fragile(digits.model, tmp_path))
    only = ["robustness.linf", "accuracy"]
    there = audit(subject, only=only, limit=150, on=on, jobs=2, store=Store(tmp_path / "there"))
    assert (tmp_path / "killed").exists()
    here = audit(digits, only=only, limit=150, store=Store(tmp_path / "here"))
    for name, s in here.samples.items():
        assert (there.samples[name].values == s.values).all()
