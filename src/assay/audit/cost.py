"""Cost: the size of the model, and what one prediction takes."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from assay.audit.property import CLASSIFIERS, Context, Cost, Plot, Property, Section
from assay.compress import size_of
from assay.runtime.inference import device_of, evaluating
from assay.runtime.metric import Metric
from assay.subject import Access, Subject
from assay.subject.adapters.base import asks_afar

BATCHES = (1, 4, 16, 64, 256)
MEMORY_BATCH = 64


def measure(subject: Subject, context: Context) -> Section:
    """Latency and throughput on this machine; with access to the weights also size, operations and peak memory."""
    section = Section(headline=["cost.parameters", "cost.latency.batch1"])
    model, x = subject.model, subject.test.x
    if asks_afar(model):
        return Section(
            skipped="an endpoint is not timed: that would spend queries, and known answers come from the cache"
        )
    with evaluating(model), torch.inference_mode():
        if subject.access >= Access.WEIGHTS:
            _sizes(section, model, x)
        else:
            section.notes.append(f"Size, operations and memory need WEIGHTS access; {subject.access.name} is granted.")
        _times(section, model, x, context)
    return section


def _sizes(section: Section, model: nn.Module, x: Tensor) -> None:
    size, device = size_of(model), device_of(model)
    encoding = (
        "parameters in the smaller of a dense and a bitmap code, at the precision of the grid the weights lie on; "
        "buffers not counted"
    )
    section.add(Metric("cost.parameters", size.parameters, better="lower", how="parameters of the model"))
    section.add(Metric("cost.nonzero", size.nonzero, better="lower", how="parameters that are not zero"))
    section.add(Metric("cost.bytes", size.bytes, unit="B", better="lower", how=encoding))
    with FlopCounterMode(display=False) as counter:
        model(x[:1].to(device))
    how = "torch.utils.flop_counter on one sample: matrix products and convolutions, a multiply-add counts two"
    section.add(Metric("cost.flops", counter.get_total_flops(), unit="FLOP", better="lower", how=how))
    batch = _repeat(x, MEMORY_BATCH).to(device)
    how = (
        f"most bytes of tensors alive at once in inference on {MEMORY_BATCH} samples, operator by operator; "
        "without parameters, the input and the kernels' own workspace"
    )
    peak = peak_bytes(model, batch)
    section.add(Metric("cost.memory.peak", peak, n=MEMORY_BATCH, unit="B", better="lower", how=how))


def _times(section: Section, model: nn.Module, x: Tensor, context: Context) -> None:
    seconds, most = context.pick(0.1, 0.5, 2.0), context.pick(100, 500, 2000)
    where = f"{device_of(model).type}, {torch.get_num_threads()} threads"
    rates: dict[int, tuple[float, float, float, int]] = {}
    for size in BATCHES:
        taken = timed(model, _repeat(x, size).to(device_of(model)), seconds=seconds, most=most)
        middle = statistics.median(taken)
        rates[size] = size / middle, size / max(taken), size / min(taken), len(taken)
        if size == 1:
            low, high, n = min(taken) * 1e3, max(taken) * 1e3, len(taken)
            how = f"median time of one sample over {n} runs after a warm-up; {where}"
            section.add(
                Metric(
                    "cost.latency.batch1", middle * 1e3, low, high, f"min and max of {n} runs", n, "ms", "lower", how
                )
            )
    best = max(rates, key=lambda size: rates[size][0])
    rate, slowest, fastest, n = rates[best]
    how = f"samples a second at the best of the batch sizes {', '.join(map(str, BATCHES))}: {best}; {where}"
    interval = f"slowest and fastest of {n} runs"
    section.add(Metric("cost.throughput", rate, slowest, fastest, interval, n, "samples/s", "higher", how))
    columns = list(zip(*rates.values(), strict=True))
    series = {"x": list(rates), "y": list(columns[0]), "low": list(columns[1]), "high": list(columns[2])}
    section.plots.append(Plot("line", "Throughput by batch size", {"median": series}, "batch size", "samples/s"))


def _repeat(x: Tensor, n: int) -> Tensor:
    """The first ``n`` samples, started over where there are fewer."""
    return x[torch.arange(n) % len(x)]


def timed(model: Callable[[Tensor], Tensor], x: Tensor, *, seconds: float, most: int) -> list[float]:
    """Seconds that each run on ``x`` took, after one warm-up: at least 3 runs, then until ``seconds`` or ``most``."""
    model(x)
    _wait(x.device)
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < seconds and len(taken) < most):
        start = time.perf_counter()
        model(x)
        _wait(x.device)
        taken.append(time.perf_counter() - start)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Alive(TorchDispatchMode):
    """Follows the bytes of every storage that an operator makes, until it is freed."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.known.update(t.untyped_storage() for t in given)
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.bytes -= size


def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """The most bytes of tensors alive at once while ``model`` maps ``x``, without parameters, buffers and ``x``."""
    alive = _Alive([x, *model.parameters(), *model.buffers()])
    with evaluating(model), torch.no_grad(), alive:
        model(x)
    return alive.peak


def _cost(subject: Subject, context: Context) -> Cost:
    return Cost(forward=0 if asks_afar(subject.model) else 40 * sum(BATCHES))


PROPERTY = Property("cost", "Cost", measure, _cost, needs=Access.DECISION, tasks=CLASSIFIERS)
