"""What an audit is made of before it runs: which properties, on which subject, for how long."""

from __future__ import annotations

import copy
import heapq
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from assay.audit.property import PROFILES, Context, Cost, Profile, Property
from assay.audit.registry import select
from assay.audit.suited import divisible
from assay.runtime.errors import AssayError, InputError, unknown
from assay.runtime.executor import workers_of
from assay.runtime.inference import device_of, evaluating, pick_device
from assay.subject import Access, Subject
from assay.subject.adapters.base import asks_afar
from assay.subject.aligned import aligned

CLUSTER = 6.0  # seconds that a Ray cluster on this machine takes to start, before its workers do


def checked(profile: Profile, only: Iterable[str] | None, limit: int | None) -> list[Property]:
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    if limit is not None and limit < 2:
        raise InputError(f"limit={limit}; expected at least 2 samples")
    return select(profile, only)


def prepared(subject: Subject, limit: int | None, seed: int, device: str | None) -> Subject:
    """The subject on its device, with aligned splits and a model that is seen to work on one sample."""
    subject = aligned(subject)
    model = subject.model
    if device is not None:
        chosen = pick_device(device)
        model = model if device_of(model) == chosen else copy.deepcopy(model).to(chosen)
    subject = replace(subject, model=model, test=subject.test.limit(limit, seed=seed))
    x = subject.test.x[:2].to(device_of(model))
    try:
        with evaluating(model), torch.no_grad():
            out = model(x)
    except AssayError:
        raise
    except Exception as error:  # a stranger's model may raise anything
        detail = " ".join(str(error).split())[:160]
        raise InputError(
            f"subject {subject.name!r}: the model fails on inputs of shape {tuple(x.shape)} ({detail}); "
            "expected a model for this data"
        ) from error
    classes = len(subject.test.classes)
    if subject.task == "classification" and (not isinstance(out, torch.Tensor) or out.shape != (len(x), classes)):
        shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(
            f"subject {subject.name!r}: the model gives {shape}; expected logits of shape ({len(x)}, {classes})"
        )
    return subject


@dataclass(frozen=True)
class Planned:
    """One line of a plan: passes of single samples, the expected seconds on one worker, and the pieces it is cut in."""

    name: str
    forward: int
    backward: int
    trainings: float
    seconds: float
    skipped: str | None = None
    pieces: int = 1


def plan(
    subject: Subject,
    *,
    profile: Profile = "quick",
    only: Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> list[Planned]:
    """What an audit would run, without running it; times are from one timed batch forward and backward."""
    chosen = checked(profile, only, limit)
    subject = prepared(subject, limit, seed, device)
    return estimates(subject, chosen, Context(profile, seed, limit))


def estimates(subject: Subject, chosen: Sequence[Property], context: Context) -> list[Planned]:
    """A line for each property of a prepared subject."""
    forward, backward = _pace(subject)
    recipe = subject.recipe.plan() if subject.recipe is not None else None
    n = len(subject.train) if subject.train is not None else 0
    training = recipe.total(n) * min(recipe.batch_size, n) * backward if recipe is not None and n else 0.0
    rows = []
    for p in chosen:
        why = p.missing(subject)
        cost = Cost() if why else p.cost(subject, context)
        seconds = 0.0 if why else cost.forward * forward + cost.backward * backward + cost.trainings * training
        data = divisible(p, subject, context)[2] if why is None else None
        pieces = len(p.shards.cut(len(data))) if p.shards is not None and data is not None else 1
        rows.append(Planned(p.name, cost.forward, cost.backward, cost.trainings, round(seconds, 2), why, pieces))
    return rows


def expected_wall(rows: Sequence[Planned], *, on: str = "local", jobs: int = 1) -> tuple[int, float]:
    """How many workers there are, and the seconds until the last piece ends, longest first, with their start-up."""
    workers = workers_of(on, jobs)
    if workers == 1 and on == "local":
        return 1, sum(r.seconds for r in rows)
    busy = [_startup(on, workers)] * workers
    pieces = (r.seconds / r.pieces for r in rows if r.skipped is None for _ in range(r.pieces))
    for seconds in sorted(pieces, reverse=True):
        heapq.heapreplace(busy, busy[0] + seconds)
    return workers, max(busy)


def _startup(on: str, workers: int) -> float:
    """Seconds until workers are up: one is timed here, and those of this machine share its cores."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import assay.audit.run"], check=False, capture_output=True)
    seconds = time.perf_counter() - start
    if on.startswith("ray://"):
        return seconds
    return seconds * max(workers / (os.cpu_count() or 1), 1.0) + (CLUSTER if on == "ray" else 0.0)


def _pace(subject: Subject) -> tuple[float, float]:
    """Seconds a sample: forward alone, and forward with backward to the input; 0 for what this machine does not do."""
    if asks_afar(subject.model):
        return 0.0, 0.0
    x = subject.test.x[:256].to(device_of(subject.model))
    times = []
    with evaluating(subject.model):
        for grad in (False, False, True, True) if subject.access >= Access.GRADIENT else (False, False):
            start = time.perf_counter()
            with torch.set_grad_enabled(grad):
                # Token ids have no gradient: no property of texts asks for one.
                out = subject.model(x.clone().requires_grad_(grad and subject.task != "text-classification"))
                if out.requires_grad:
                    out.sum().backward()
            times.append((time.perf_counter() - start) / len(x))
    return times[1], times[3] if len(times) > 2 else 0.0
