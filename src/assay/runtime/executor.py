"""Runs independent tasks: here, in worker processes, or on a Ray cluster. Same tasks, same results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import Any

from assay.runtime.errors import AssayError, InputError, unknown

Task = Callable[[], Any]


def run_tasks(tasks: Sequence[Task], *, on: str = "local", jobs: int = 1) -> Iterator[tuple[int, Any]]:
    """Yield (position, result) as tasks end. ``on``: "local", "ray" (a local cluster) or "ray://host:port".

    A task is a function without arguments; what it closes over travels with it. With ``jobs`` = 1 and "local" the
    tasks run in this process, in order.
    """
    if jobs < 1:
        raise InputError(f"jobs={jobs}; expected at least 1")
    if on == "local":
        return _processes(tasks, jobs) if jobs > 1 and len(tasks) > 1 else ((i, t()) for i, t in enumerate(tasks))
    if on == "ray" or on.startswith("ray://"):
        return _ray(tasks, None if on == "ray" else on, jobs)
    raise unknown("executor", on, ("local", "ray"))


def _processes(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[int, Any]]:
    import joblib

    def numbered(i: int, task: Task) -> tuple[int, Any]:
        return i, task()

    pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    try:
        yield from pool(joblib.delayed(numbered)(i, t) for i, t in enumerate(tasks))
    except BrokenExecutor as error:
        raise AssayError(f"--jobs {jobs}: a worker failed ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@contextmanager
def session(on: str = "local", jobs: int = 1) -> Iterator[None]:
    """What ``run_tasks`` needs, kept up over several calls of it inside the block: one Ray cluster, or nothing."""
    if on == "ray" or on.startswith("ray://"):
        with _cluster(None if on == "ray" else on, jobs):
            yield
    else:
        yield


@contextmanager
def _cluster(address: str | None, jobs: int) -> Iterator[Any]:
    """Ray, connected to the cluster at ``address`` or to one that ends with the block; a running one is used as is."""
    try:
        import ray
    except ImportError as error:
        raise InputError("--on ray: the package ray is not installed; expected pip install 'assay[ray]'") from error
    started = not ray.is_initialized()
    if started:
        options = {"address": address} if address else {"num_cpus": max(jobs, 1), "include_dashboard": False}
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except ConnectionError as error:
            raise InputError(f"--on {address}: no Ray cluster answers there") from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _ray(tasks: Sequence[Task], address: str | None, jobs: int) -> Iterator[tuple[int, Any]]:
    with _cluster(address, jobs) as ray:
        remote: Any = ray.remote(lambda task: task())
        waiting = {remote.remote(t): i for i, t in enumerate(tasks)}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None) or error
                    if not isinstance(cause, ray.exceptions.RayError):
                        raise cause from None
                    raise AssayError(f"--on ray: a worker failed ({_line(cause)})") from error
                yield waiting.pop(reference), result
