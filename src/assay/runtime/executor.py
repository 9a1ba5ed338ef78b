"""Pieces of work on shared objects: here, in worker processes, or on a Ray cluster. What a lost worker held runs again.

Large objects (a model, a data set) are handed over once and pieces name them. Worker processes read them from files
that are mapped, not copied: all workers share one copy. On Ray they lie in the object store, one copy a machine.
Rows travel in blocks: each block is cut when its piece is sent, and no more than two pieces a worker are under way, so
neither the queue nor the object store ever holds the data set a second time. Ray Data does the same with a pipeline of
its own for each set of rows; started for every property of an audit it costs more than it moves (docs/scale.md has the
measurement), and its pipelines cannot be mixed, longest first, with the properties that are one piece.
"""

from __future__ import annotations

import io
import logging
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.runtime.errors import AssayError, InputError, unknown

RETRIES = 3  # workers lost one after the other, without a piece finished in between
AHEAD = 2  # pieces under way for each worker
MAPPED = 1 << 20  # bytes from which a tensor is mapped rather than copied


@dataclass(frozen=True)
class Work:
    """One piece: ``run(*shared objects that uses names, *given())``. ``given`` is called when the piece is sent."""

    run: Callable[..., Any]
    uses: tuple[str, ...] = ()
    given: Callable[[], tuple[Any, ...]] = tuple


def run_shared(
    works: Sequence[Work], shared: Mapping[str, Any], *, on: str = "local", jobs: int = 1, retries: int = RETRIES
) -> Iterator[tuple[int, Any]]:
    """Yield (position, result) as pieces end. ``on``: "local", "ray" (a local cluster) or "ray://host:port".

    Pieces start in the order given; with ``jobs`` = 1 and "local" they run in this process. Where a worker dies, the
    pieces that it held run again; after ``retries`` losses in a row AssayError. What a piece raises is raised here.
    """
    if jobs < 1:
        raise InputError(f"jobs={jobs}; expected at least 1")
    if on == "local":
        return _processes(works, shared, jobs, retries) if jobs > 1 and len(works) > 1 else _here(works, shared)
    if on == "ray" or on.startswith("ray://"):
        return _ray(works, shared, on, jobs, retries)
    raise unknown("executor", on, ("local", "ray"))


def _here(works: Sequence[Work], shared: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    for i, work in enumerate(works):
        yield i, work.run(*(shared[name] for name in work.uses), *work.given())


def _processes(works: Sequence[Work], shared: Mapping[str, Any], jobs: int, retries: int) -> Iterator[tuple[int, Any]]:
    todo, lost = deque(range(len(works))), 0
    with tempfile.TemporaryDirectory(prefix="assay-", ignore_cleanup_errors=True) as folder:
        for name, value in shared.items():
            _export(value, Path(folder) / name)
        while todo:
            try:
                for i, result in _pool(works, todo, folder, jobs):
                    lost = 0
                    yield i, result
            except BrokenExecutor as error:
                lost += 1
                if lost > retries:
                    raise AssayError(f"--jobs {jobs}: {lost} workers in a row failed ({_line(error)})") from error


def _pool(works: Sequence[Work], todo: deque[int], folder: str, jobs: int) -> Iterator[tuple[int, Any]]:
    """Results of one set of workers; ``todo`` loses what is finished. BrokenExecutor where a worker dies."""
    from joblib.executor import get_memmapping_executor

    # joblib's form of the process-wide pool: whoever uses joblib.Parallel next in this process may be handed it.
    pool, sent, ended = get_memmapping_executor(jobs, max_nbytes=None), dict[Future[Any], int](), False
    try:
        while todo or sent:
            while todo and len(sent) < AHEAD * jobs:
                work = works[todo[0]]
                sent[pool.submit(_apply, folder, work.uses, work.run, work.given())] = todo[0]
                todo.popleft()
            done, _ = wait(sent, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: f.exception() is not None):
                result = future.result()
                yield sent.pop(future), result
        ended = True
    finally:
        todo.extendleft(sorted(sent.values(), reverse=True))
        if not ended:
            pool.shutdown(wait=True, kill_workers=True)


_received: dict[tuple[str, str], Any] = {}  # what this worker has read, of the run that it works for


def _apply(folder: str, uses: tuple[str, ...], run: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    for stale in [key for key in _received if key[0] != folder]:
        del _received[stale]
    for name in uses:
        if (folder, name) not in _received:
            _received[folder, name] = _import(Path(folder) / name)
    return run(*(_received[folder, name] for name in uses), *given)


def _export(value: Any, path: Path) -> None:
    """Write an object for the workers of this process; large tensors to files of their own."""
    import cloudpickle
    import torch

    class Writer(cloudpickle.Pickler):
        files = 0

        def persistent_id(self, item: Any) -> Any:
            plain = type(item) is torch.Tensor and item.device.type == "cpu" and item.layout == torch.strided
            if not plain or item.requires_grad or item.nbytes < MAPPED:
                return None
            self.files += 1
            file = f"{path}.{self.files}"
            item.detach().contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
            return file, item.dtype, tuple(item.shape)

    with path.open("wb") as stream:
        Writer(stream).dump(value)


def _import(path: Path) -> Any:
    """What ``_export`` wrote; a mapped tensor may be changed, and the change stays in this process.

    Only files that this run's own parent process wrote come here, in a folder that no other user may write to: what is
    unpickled is the hand-over between two processes of one program, never a file that a user gave.
    """
    import torch

    class Reader(pickle.Unpickler):
        def persistent_load(self, named: Any) -> Any:
            file, dtype, shape = named
            size = torch.Size(shape).numel()
            return torch.from_file(file, shared=False, size=size, dtype=dtype).view(shape)

    return Reader(io.BytesIO(path.read_bytes())).load()


def _ray(
    works: Sequence[Work], shared: Mapping[str, Any], on: str, jobs: int, retries: int
) -> Iterator[tuple[int, Any]]:
    with session(on, jobs):
        import ray

        kept = {name: ray.put(value) for name, value in shared.items()}
        remote: Any = ray.remote(max_retries=retries)(_taken)
        room = AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        todo, sent = deque(range(len(works))), dict[Any, int]()
        while todo or sent:
            while todo and len(sent) < room:
                work = works[todo[0]]
                sent[remote.remote(work.run, work.given(), *(kept[name] for name in work.uses))] = todo.popleft()
            done, _ = ray.wait(list(sent), num_returns=1)
            for reference in done:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None) or error
                    if not isinstance(cause, ray.exceptions.RayError):
                        raise cause from None
                    raise AssayError(f"--on ray: a worker failed ({_line(cause)})") from error
                yield sent.pop(reference), result


def _taken(run: Callable[..., Any], given: tuple[Any, ...], *shared: Any) -> Any:
    return run(*shared, *given)


def workers_of(on: str, jobs: int) -> int:
    """How many pieces run at a time."""
    if not on.startswith("ray://"):
        return jobs
    with session(on, jobs):
        import ray

        return max(int(ray.cluster_resources().get("CPU", 1)), 1)


@contextmanager
def session(on: str = "local", jobs: int = 1) -> Iterator[None]:
    """What ``run_shared`` needs, kept up over several calls of it inside the block: one Ray cluster, or nothing."""
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


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
