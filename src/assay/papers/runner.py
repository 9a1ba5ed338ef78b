"""Runs a paper's experiment and its shams over the seeds of a scale, judges the claims, and records the run."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.papers import catalogue, ledger
from assay.papers.hashing import claims_hash, experiment_hash, judgement_hash, run_hash
from assay.papers.model import Claim, Paper, Table, outcome
from assay.runtime.codehash import closure, source_path
from assay.runtime.errors import InputError
from assay.runtime.executor import Work, run_shared
from assay.runtime.random import derive
from assay.runtime.store import Store, key_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arm:
    """The real experiment, or one sham, over all seeds: what it measured, what follows, and how long it took."""

    table: Table
    claims: Sequence[Claim]
    seconds: float


@dataclass(frozen=True)
class Run:
    """One reproduction of a paper at a scale from a base seed; ``tables`` has a fingerprint a seed."""

    paper: Paper
    scale: str
    base_seed: int
    source: str
    judgement: str
    tables: Sequence[str]
    real: Arm
    shams: Mapping[str, Arm]
    setup_seconds: float
    peak_mb: float | None
    environment: Mapping[str, Any]
    commit: str | None

    @property
    def outcome(self) -> str:
        """reproduced, not reproduced, not separated or undecided."""
        return outcome(self.real.claims, {n: a.claims for n, a in self.shams.items()})

    @property
    def seconds(self) -> float:
        """Wall time of everything, summed over seeds."""
        return self.setup_seconds + self.real.seconds + sum(a.seconds for a in self.shams.values())

    @property
    def command(self) -> str:
        """What repeats this run."""
        return f"assay reproduce {self.paper.slug} --scale {self.scale} --seed {self.base_seed}"

    def to_dict(self) -> dict[str, Any]:
        """The row of the ledger."""
        return {
            "key": ledger.entry_key(self.paper.slug, self.scale, self.base_seed, self.source),
            "slug": self.paper.slug,
            "scale": self.scale,
            "base_seed": self.base_seed,
            "source": self.source,
            "judgement": self.judgement,
            "tables": list(self.tables),
            "commit": self.commit,
            "outcome": self.outcome,
            "claims": [c.to_dict() for c in self.real.claims],
            "shams": {n: [c.to_dict() for c in a.claims] for n, a in self.shams.items()},
            "seconds": {
                "setup": round(self.setup_seconds, 3),
                "real": round(self.real.seconds, 3),
                "shams": {n: round(a.seconds, 3) for n, a in self.shams.items()},
            },
            "peak_mb": self.peak_mb,
            "environment": dict(self.environment),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def derived_seed(slug: str, scale: str) -> int:
    """The base seed that follows from the experiment, the claims and the sizes of the scale."""
    module = catalogue.load(slug)
    chosen = module.PAPER.scale(scale)
    sizes = json.dumps([chosen.seeds, dict(chosen.sizes)], sort_keys=True, default=repr)
    return derive(int(claims_hash(module.__name__)[:8], 16), "papers", slug, scale, sizes) % 2**31


def reproduce(
    slug: str,
    *,
    scale: str = "claim",
    seed: int | None = None,
    jobs: int = 1,
    on: str = "local",
    store: Store | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a paper and its shams from the base seed ``seed`` (absent: the derived one).

    Tables that ``store`` holds are not computed again. Each seed is one task: its setup is made once and shared by
    the real experiment and every sham.
    """
    module = catalogue.load(slug)
    paper: Paper = module.PAPER
    chosen, base = paper.scale(scale), derived_seed(slug, scale) if seed is None else seed
    source = run_hash(module.__name__, chosen)
    seeds = [derive(base, slug, i) for i in range(chosen.seeds)]
    root = str(store.root) if store is not None else None
    tasks = [Work(partial(run_seed, slug, scale, s, store=root)) for s in seeds]
    done: dict[int, dict[str, Any]] = {}
    for position, result in run_shared(tasks, {}, on=on, jobs=min(jobs, len(tasks))):
        done[position] = result
        if progress is not None:
            progress(f"{slug} ({scale})", len(done), len(tasks))
    arms = {name: _arm(module.claims, done, name) for name in ("", *paper.shams)}
    peaks = [r["peak_mb"] for r in done.values() if r["peak_mb"] is not None]
    return Run(
        paper=paper,
        scale=scale,
        base_seed=base,
        source=source,
        judgement=judgement_hash(module.__name__),
        tables=[fingerprint_of(done[i]) for i in sorted(done)],
        real=arms[""],
        shams={n: arms[n] for n in paper.shams},
        setup_seconds=sum(r["setup"] for r in done.values()),
        peak_mb=max(peaks, default=None),
        environment=environment(),
        commit=ledger.commit_of(ledger.ROOT),
    )


def _arm(claims: Callable[[Table], list[Claim]], done: dict[int, dict[str, Any]], name: str) -> Arm:
    tables = {i: Table.of(done[i]["arms"][name]["rows"]) for i in sorted(done)}
    table = Table.joined(tables)
    return Arm(table, claims(table), sum(done[i]["arms"][name]["seconds"] for i in done))


def run_seed(slug: str, scale: str, seed: int, *, store: str | None = None) -> dict[str, Any]:
    """The rows and times of the real experiment ("") and of every sham for one seed, and the time of their setup.

    What ``store`` holds is not computed again: a change of the claims alone leaves the tables as they are.
    """
    module = catalogue.load(slug)
    chosen, kept = module.PAPER.scale(scale), Store(store) if store is not None else None
    code, libraries = experiment_hash(module.__name__), [torch.__version__, np.__version__]
    spent = [0.0]

    @cache
    def given() -> Any:
        start = time.perf_counter()
        made = module.setup(chosen, seed)
        spent[0] = time.perf_counter() - start
        return made

    arms = {}
    for name in ("", *module.PAPER.shams):
        key = key_of(
            paper=slug, code=code, scale=[scale, dict(chosen.sizes)], seed=seed, sham=name, libraries=libraries
        )
        found = _fetch(kept, key)
        if found is None:
            shared = given()
            start = time.perf_counter()
            table = module.experiment(chosen, seed, shared, name or None)
            found = {"rows": list(table.rows), "seconds": time.perf_counter() - start, "setup": spent[0]}
            _keep(kept, key, found)
        arms[name] = found
    return {"arms": arms, "setup": max(a["setup"] for a in arms.values()), "peak_mb": _peak_mb()}


def fingerprint_of(ran: Mapping[str, Any]) -> str:
    """The fingerprint of what ``run_seed`` returned."""
    return ledger.fingerprint({name: arm["rows"] for name, arm in ran["arms"].items()})


def _fetch(store: Store | None, key: str) -> dict[str, Any] | None:
    found = store.get(key) if store is not None else None
    return None if found is None else json.loads(found["json"].tobytes())


def _keep(store: Store | None, key: str, result: dict[str, Any]) -> None:
    if store is not None:
        store.put(key, {"json": np.frombuffer(json.dumps(result).encode(), np.uint8)})


def _peak_mb() -> float | None:
    """Largest resident size of this process so far; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size / (2**20 if sys.platform == "darwin" else 2**10), 1)


def environment() -> dict[str, Any]:
    """What a run depends on besides the code."""
    libraries = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {
        "python": platform.python_version(),
        **libraries,
        "platform": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def recorded(slug: str, scale: str, root: Path = ledger.ROOT) -> dict[str, Any] | None:
    """The recorded run of the present code at a scale, where there is one."""
    module = catalogue.load(slug)
    source = run_hash(module.__name__, module.PAPER.scale(scale))
    key = ledger.entry_key(slug, scale, derived_seed(slug, scale), source)
    return next((r for r in ledger.read(slug, root) if r["key"] == key), None)


def check_recordable(slug: str) -> None:
    """InputError unless the module and all that it imports inside assay are committed as they are."""
    name = catalogue.load(slug).__name__
    ledger.check_committed([path for m in closure(name) if (path := source_path(m)) is not None])


def record(run: Run, root: Path = ledger.ROOT) -> dict[str, Any]:
    """Append the run to the ledger, whatever its outcome. InputError for another base seed or uncommitted code."""
    expected = derived_seed(run.paper.slug, run.scale)
    if run.base_seed != expected:
        raise InputError(f"--record: base seed {run.base_seed}; expected {expected}, which follows from the claims")
    check_recordable(run.paper.slug)
    if run.source != run_hash(catalogue.load(run.paper.slug).__name__, run.paper.scale(run.scale)):
        raise InputError(f"--record: the code of {run.paper.slug} changed during the run; expected it unchanged")
    row = run.to_dict()
    ledger.append(run.paper.slug, row, root)
    return row
