"""The audit: each property is a task whose result is kept, so that a killed audit resumes where it was."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from assay.audit.property import PROFILES, Context, Cost, Profile, Property, Section
from assay.audit.registry import select
from assay.audit.result import Audit
from assay.audit.suited import suited
from assay.runtime.codehash import code_hash
from assay.runtime.errors import AccessError, AssayError, BudgetError, InputError, unknown
from assay.runtime.executor import run_tasks
from assay.runtime.inference import device_of, evaluating, pick_device
from assay.runtime.spec import spec_of
from assay.runtime.store import Store, key_of
from assay.subject import Access, Subject
from assay.subject.adapters.base import asks_afar
from assay.subject.options import options_hash
from assay.subject.subject import model_hash

Progress = Callable[[str, int, int], None]


def audit(
    subject: Subject,
    *,
    profile: Profile = "quick",
    only: Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    jobs: int = 1,
    on: str = "local",
    store: Store | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Measure a subject's properties.

    ``only`` names properties (or prefixes); ``limit`` caps the test samples; ``jobs`` worker processes; ``on`` the
    executor. What was measured before on the same weights, data, options and code is taken from the result store.
    ``progress(name, done, total)`` is told of every property that is finished. Raises InputError for unusable input.
    """
    chosen = _checked(profile, only, limit)
    subject = _prepared(subject, limit, seed, device)
    store, context, start = store or Store(), Context(profile, seed, limit), time.monotonic()
    sections: dict[str, Section] = {p.name: Section(skipped=why) for p in chosen if (why := p.missing(subject))}
    identity = fingerprint(subject)
    keys = {p.name: _key(identity, p, context) for p in chosen if p.name not in sections}
    waiting = []
    for p in chosen:
        kept = _kept(store, keys[p.name]) if p.name in keys else None
        if kept is not None:
            sections[p.name] = kept
        elif p.name not in sections:
            waiting.append(p)
    report = progress or (lambda name, done, total: None)
    report("", len(sections), len(chosen))
    tasks = [partial(run_property, p.name, subject, context) for p in waiting]
    for i, section in run_tasks(tasks, on=on, jobs=min(jobs, max(len(tasks), 1))):  # each worker costs memory
        name = waiting[i].name
        if section.skipped is None:
            store.put(keys[name], section.to_arrays())
        sections[name] = section
        report(name, len(sections), len(chosen))
    return Audit(
        subject.name,
        profile,
        seed,
        {p.name: sections[p.name] for p in chosen},
        {p.name: p.title for p in chosen},
        {**identity, "limit": limit, "seconds": round(time.monotonic() - start, 3), **environment()},
    )


def _kept(store: Store, key: str) -> Section | None:
    """The section that was measured before; None where there is none, or no longer one that can be read."""
    arrays = store.get(key)
    if arrays is None:
        return None
    try:
        return Section.from_arrays(arrays)
    except Exception:  # what another content raises depends on where it is used
        store.path(key).unlink(missing_ok=True)
        return None


def _checked(profile: Profile, only: Iterable[str] | None, limit: int | None) -> list[Property]:
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    if limit is not None and limit < 2:
        raise InputError(f"limit={limit}; expected at least 2 samples")
    return select(profile, only)


def _prepared(subject: Subject, limit: int | None, seed: int, device: str | None) -> Subject:
    """The subject on its device, with a model that is seen to work on one sample."""
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


def run_property(name: str, subject: Subject, context: Context) -> Section:
    """One property of one subject: the unit of work that executors run."""
    from assay.audit.registry import properties

    start = time.monotonic()
    try:
        chosen = properties()[name]
        given, notes = suited(chosen, subject, context)
        section = chosen.measure(given, context)
        section.notes += notes if section.skipped is None else []
    except (AccessError, BudgetError) as error:
        section = Section(skipped=str(error))
    section.seconds = round(time.monotonic() - start, 3)
    return section


def fingerprint(subject: Subject) -> dict[str, Any]:
    """What identifies a subject: hashes of weights, options and data, recipe and access."""
    recipe = spec_of(subject.recipe) if subject.recipe is not None else None
    splits = {s: getattr(subject, s) for s in ("train", "holdout", "test")}
    return {
        "weights": model_hash(subject.model),
        "options": options_hash(subject.model),
        "hashes": {s: d.hash for s, d in splits.items() if d is not None},
        "sizes": {s: len(d) for s, d in splits.items() if d is not None},
        "recipe": recipe.to_dict() if recipe is not None else None,
        "access": subject.access.name,
        "task": subject.task,
        "data": subject.test.name,
        "model": type(subject.model).__name__,
    }


def environment() -> dict[str, str]:
    """Versions and machine, as far as results may depend on them."""
    from importlib.metadata import version

    names = {n: version(n) for n in ("assay", "torch", "numpy")}
    return {
        **names,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def _key(identity: dict[str, Any], p: Property, context: Context) -> str:
    code = code_hash(p.measure.__module__), code_hash(suited.__module__)
    return key_of(subject=identity, property=p.name, context=asdict(context), code=code)


@dataclass(frozen=True)
class Planned:
    """One line of a plan: passes of single samples, and the expected seconds on this machine."""

    name: str
    forward: int
    backward: int
    trainings: float
    seconds: float
    skipped: str | None = None


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
    chosen = _checked(profile, only, limit)
    subject = _prepared(subject, limit, seed, device)
    context, (forward, backward) = Context(profile, seed, limit), _pace(subject)
    recipe = subject.recipe.plan() if subject.recipe is not None else None
    n = len(subject.train) if subject.train is not None else 0
    training = recipe.total(n) * min(recipe.batch_size, n) * backward if recipe is not None and n else 0.0
    rows = []
    for p in chosen:
        why = p.missing(subject)
        cost = Cost() if why else p.cost(subject, context)
        seconds = 0.0 if why else cost.forward * forward + cost.backward * backward + cost.trainings * training
        rows.append(Planned(p.name, cost.forward, cost.backward, cost.trainings, round(seconds, 2), why))
    return rows


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
