"""The Ray executor on a local cluster: the same results and the same errors as here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import assay
from assay.audit import audit
from assay.runtime.errors import InputError
from assay.runtime.executor import run_tasks
from assay.runtime.store import Store
from assay.subject import Subject

ray: Any = pytest.importorskip("ray", reason="the package ray is not installed (pip install 'assay[ray]')")

TWO = ["accuracy", "calibration"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    source = str(Path(assay.__file__).parents[1])
    paths = [source, str(Path(__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ray.init(
        num_cpus=1,
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


@pytest.mark.parametrize("task", [lambda: os._exit(1), Elsewhere()])
def test_a_lost_worker_or_task_is_one_line(task: Any) -> None:
    with pytest.raises(assay.AssayError, match="--on ray: a worker failed") as error:
        list(run_tasks([task], on="ray"))
    assert "\n" not in str(error.value)
