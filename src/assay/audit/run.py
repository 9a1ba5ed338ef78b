"""The audit: each property is a task whose result is kept, so that a killed audit resumes where it was."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from assay.audit.planning import checked, estimates, prepared
from assay.audit.property import Context, Profile, Property, Section
from assay.audit.registry import properties
from assay.audit.result import Audit
from assay.audit.shards import Arrays, Shards
from assay.audit.suited import divisible, suited
from assay.data import Data
from assay.runtime.codehash import code_hash
from assay.runtime.errors import AccessError, BudgetError, InputError
from assay.runtime.executor import Work, run_shared
from assay.runtime.inference import BATCH
from assay.runtime.spec import spec_of
from assay.runtime.store import Store, key_of
from assay.runtime.throughput import Throughput, products, tuned
from assay.subject import Access, Subject
from assay.subject.code import running_code
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
    throughput: Throughput | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Measure a subject's properties.

    ``only`` names properties (or prefixes); ``limit`` caps the test samples; ``jobs`` worker processes; ``on`` the
    executor. ``throughput`` makes passes cheaper for the properties that only pass inputs through the model. What was
    measured before on the same weights, data, options and code is taken from the result store, parts of a property
    too. ``progress(name, done, total)`` is told of every property, and every part, that is finished. Raises InputError
    for unusable input.
    """
    run_shared([], {}, on=on, jobs=jobs)  # what cannot be run on is refused before anything is prepared
    chosen = checked(profile, only, limit)
    subject = prepared(subject, limit, seed, device)
    switches = throughput or Throughput()
    fast = tuned(subject.model, switches, subject.test.x[:BATCH], subject.access >= Access.GRADIENT)
    store, context, start = store or Store(), Context(profile, seed, limit), time.monotonic()
    identity = fingerprint(subject)
    extra = {"throughput": asdict(switches)} if switches != Throughput() else {}
    tasks = [_Task(p, subject, context, {**identity, **(extra if p.passes else {})}, store) for p in chosen]
    report = progress or (lambda name, done, total: None)

    def told(name: str) -> None:
        report(name, sum(t.section is not None for t in tasks), len(tasks))

    told("")
    waiting = [(t, k, work) for t in tasks for k, work in t.waiting()]
    if jobs > 1 or on != "local":  # the longest first
        expected = {p.name: p.seconds for p in estimates(subject, [t.property for t in tasks], context)}
        waiting.sort(key=lambda piece: -expected[piece[0].property.name] / piece[0].pieces)
    shared = {"model": subject.model, "fast": fast, "subject": subject.with_model(nn.Identity())}
    jobs = min(jobs, max(len(waiting), 1))  # each worker costs memory
    for i, found in run_shared([work for _, _, work in waiting], shared, on=on, jobs=jobs):
        task, number, _ = waiting[i]
        task.take(number, found)
        told(task.property.name if task.section is not None else f"{task.property.name} ({task.done} of {task.pieces})")
    return Audit(
        subject.name,
        profile,
        seed,
        {t.property.name: t.section for t in tasks if t.section is not None},
        {p.name: p.title for p in chosen},
        {**identity, **extra, "limit": limit, "seconds": round(time.monotonic() - start, 3), **environment()},
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


class _Task:
    """A property on its way to a section: kept, skipped, in one piece, or in parts that are kept one by one."""

    def __init__(self, p: Property, subject: Subject, context: Context, identity: dict[str, Any], store: Store) -> None:
        self.property, self.subject, self.store = p, subject, store
        self.context = replace(context, access=subject.access)
        code = code_hash(p.measure.__module__), code_hash(suited.__module__)
        self.key = key_of(subject=identity, property=p.name, context=asdict(self.context), code=code)
        self.data: Data | None = None
        self.notes: list[str] = []
        self.cuts: list[slice] = []
        self.parts: dict[int, Arrays] = {}
        why = p.missing(subject)
        self.section = Section(skipped=why) if why else _kept(store, self.key)
        if self.section is None and p.shards is not None:
            self._cut(p.shards)

    def _cut(self, shards: Shards) -> None:
        given, notes, self.data = divisible(self.property, self.subject, self.context)
        if self.data is None:
            return
        self.subject, self.notes, self.cuts = given, notes, shards.cut(len(self.data))
        if len(self.cuts) > 1:
            found = {k: self.store.get(self._part_key(k)) for k in range(len(self.cuts))}
            self.parts = {k: arrays for k, arrays in found.items() if arrays is not None}
            self._join()

    @property
    def pieces(self) -> int:
        """How many pieces of work the property is."""
        return max(len(self.cuts), 1)

    @property
    def done(self) -> int:
        """How many of them are finished."""
        return len(self.parts)

    def waiting(self) -> list[tuple[int, Work]]:
        """The pieces that are not finished, by number."""
        if self.section is not None:
            return []
        name, model = self.property.name, "fast" if self.property.passes else "model"
        if self.pieces == 1:
            return [(0, Work(_measured, (model, "subject"), lambda: (name, self.context)))]
        return [(k, Work(_part, (model,), partial(self._given, k))) for k in range(self.pieces) if k not in self.parts]

    def _given(self, number: int) -> tuple[Any, ...]:
        assert self.data is not None
        rows = self.cuts[number]
        block = self.data[torch.arange(rows.start, rows.stop)]  # a copy: a view would travel with all that it views
        return self.property.name, block, self.context, rows.start

    def _part_key(self, number: int) -> str:
        rows = self.cuts[number]
        return key_of(whole=self.key, rows=[rows.start, rows.stop])

    def take(self, number: int, found: Any) -> None:
        """Keep the result of a piece."""
        if self.pieces > 1:
            if "skipped" not in found:
                self.store.put(self._part_key(number), found)
            self.parts[number] = found
            self._join()
        else:
            self.section = found
            self._keep()

    def _join(self) -> None:
        if len(self.parts) == self.pieces:
            assert self.property.shards is not None
            assert self.data is not None
            parts = [self.parts[k] for k in range(self.pieces)]
            self.section = self.property.shards.join(self.subject, self.data, parts, self.context)
            self.section.notes += self.notes if self.section.skipped is None else []
            self._keep()

    def _keep(self) -> None:
        if self.section is not None and self.section.skipped is None:
            self.store.put(self.key, self.section.to_arrays())


def _measured(model: nn.Module, subject: Subject, name: str, context: Context) -> Section:
    return run_property(name, subject.with_model(model), context)


def _part(model: nn.Module, name: str, data: Data, context: Context, first: int) -> Arrays:
    """One part of a property: the other unit of work."""
    shards = properties()[name].shards
    assert shards is not None
    return shards.run(name, model, data, context, first)


def run_property(name: str, subject: Subject, context: Context) -> Section:
    """One property of one subject: the unit of work that executors run."""
    start, chosen = time.monotonic(), properties()[name]
    try:
        given, notes = suited(chosen, subject, context)
        with products(given.model):
            section = chosen.measure(given, context)
        section.notes += notes if section.skipped is None else []
    except (AccessError, BudgetError, InputError) as error:
        if isinstance(error, InputError) and chosen.passes:  # model or data are unusable for every property
            raise
        section = Section(skipped=str(error))
    section.seconds = round(time.monotonic() - start, 3)
    return section


def fingerprint(subject: Subject) -> dict[str, Any]:
    """What identifies a subject: hashes of weights, options, code and data, recipe and access."""
    recipe = spec_of(subject.recipe) if subject.recipe is not None else None
    splits = {s: getattr(subject, s) for s in ("train", "holdout", "test")}
    return {
        "weights": model_hash(subject.model),
        "options": options_hash(subject.model),
        "code": running_code(subject.model),
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
