"""What a paper's module is made of: the paper, its scales, the table of an experiment, and the claims it decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Literal

import numpy as np

from assay.runtime.errors import InputError, unknown
from assay.runtime.statistics import t_interval

Verdict = Literal["holds", "refuted", "undecided"]
Cell = float | int | str | bool | None
SEEDS = 5  # what an interval over seeds and a k-of-n count need
KINDS = ("method", "theory", "measure", "benchmark", "survey", "empirical")  # joined by " + " where it is several
SCALES = ("smoke", "claim", "gpu")


@dataclass(frozen=True)
class Scale:
    """How large an experiment is: its name, the number of seeds, and the sizes that the module reads by name."""

    name: str
    seeds: int
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SCALES:
            raise unknown("scale", self.name, SCALES)
        if self.seeds < 1:
            raise InputError(f"scale {self.name}: {self.seeds} seeds; expected at least 1")

    def __getitem__(self, size: str) -> Any:
        if size not in self.sizes:
            raise unknown(f"size of scale {self.name}", size, self.sizes)
        return self.sizes[size]


@dataclass(frozen=True)
class Pilot:
    """Why a claim needs a GPU: the ledger key of the run that showed it, and the reason."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What a module says about its paper. ``shams`` name each removed ingredient; ``baselines`` the reference arms."""

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    room: str
    kind: str
    implements: tuple[str, ...]
    claim: str
    headline: str
    shams: Mapping[str, str]
    scales: tuple[Scale, ...]
    also: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    needs_gpu: Pilot | None = None

    def __post_init__(self) -> None:
        where = f"paper {self.slug!r}"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise InputError(f"{where}: expected a slug of lower-case letters, digits and single hyphens")
        if not set(self.kind.split(" + ")) <= set(KINDS):
            raise unknown(f"kind of {where}", self.kind, KINDS)
        if not self.shams or not self.implements:
            raise InputError(f"{where}: expected at least one sham and one public name in implements")
        names = [s.name for s in self.scales]
        if len(set(names)) != len(names) or not {"smoke", "claim"} <= set(names):
            raise InputError(f"{where}: scales {names}; expected smoke and claim, each once")

    def scale(self, name: str) -> Scale:
        """The scale of that name."""
        found = {s.name: s for s in self.scales}
        if name not in found:
            raise unknown(f"scale of {self.slug}", name, found)
        return found[name]


@dataclass(frozen=True)
class Table:
    """What an experiment measured: rows of named cells. The runner adds the column ``seed``."""

    rows: tuple[Mapping[str, Cell], ...]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Table:
        """A table of ``rows``; NumPy scalars become Python's own."""
        plain = tuple({k: v.item() if isinstance(v, np.generic) else v for k, v in r.items()} for r in rows)
        if not plain:
            raise InputError("table: no rows; expected at least one")
        for row in plain:
            for name, cell in row.items():
                if not isinstance(cell, (float, int, str, bool, type(None))):
                    raise InputError(f"table: cell {name!r} is {type(cell).__name__}; expected a number or text")
        return cls(plain)

    @classmethod
    def joined(cls, tables: Mapping[int, Table]) -> Table:
        """One table of the tables of several seeds, in the order given."""
        return cls(tuple({"seed": seed, **row} for seed, table in tables.items() for row in table.rows))

    def where(self, **cells: Cell) -> Table:
        """The rows whose cells are these."""
        return Table(tuple(r for r in self.rows if all(r.get(k) == v for k, v in cells.items())))

    def values(self, column: str, **cells: Cell) -> np.ndarray:
        """The numbers of a column (k,), in row order, of the rows whose cells are these and that have the column."""
        found = [r[column] for r in self.where(**cells).rows if column in r]
        if not found:
            raise InputError(f"table: no row with column {column!r} and {cells}; expected at least one")
        return np.array([np.nan if v is None else v for v in found], float)

    def per_seed(self, column: str, reduce: Callable[[np.ndarray], Any] = np.mean, **cells: Cell) -> np.ndarray:
        """One number a seed: ``reduce`` of the column's values under that seed."""
        seeds = dict.fromkeys(r.get("seed", 0) for r in self.where(**cells).rows if column in r)
        if "seed" not in (self.rows[0] if self.rows else {}):
            return np.array([reduce(self.values(column, **cells))], float)
        return np.array([reduce(self.values(column, **{**cells, "seed": s})) for s in seeds], float)

    def gain(self, arm: str, reference: str, column: str) -> np.ndarray:
        """Paired differences (seeds,) of a column between two arms: arm minus reference."""
        a, b = self.per_seed(column, arm=arm), self.per_seed(column, arm=reference)
        if a.shape != b.shape:
            raise InputError(f"table: {len(a)} seeds of {arm!r}, {len(b)} of {reference!r}; expected the same seeds")
        return a - b


@dataclass(frozen=True, eq=False)
class Claim:
    """One sentence with what was observed (one number a seed), its bound, and the rule that decides.

    ``exact``: every number is within the bound. ``interval``: Student's 95% interval of their mean lies within it, at
    five seeds or more. ``k-of-n``: at least ``k`` of n >= 5 numbers are within it; refuted where as many are beyond
    it, undecided between. A NaN decides nothing. ``key`` claims decide the paper; the others support it.
    ``refuted_by`` names the shams that must refute the claim.
    """

    text: str
    observed: Any
    at_least: float | None = None
    at_most: float | None = None
    rule: Literal["exact", "interval", "k-of-n"] = "interval"
    k: int | None = None
    key: bool = True
    refuted_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "observed", np.atleast_1d(np.asarray(self.observed, float)))
        if self.at_least is None and self.at_most is None:
            raise InputError(f"claim {self.text!r}: expected a bound (at_least, at_most or both)")
        if self.rule not in ("exact", "interval", "k-of-n"):
            raise unknown("rule", self.rule, ("exact", "interval", "k-of-n"))
        if self.observed.ndim != 1 or len(self.observed) == 0:
            raise InputError(f"claim {self.text!r}: observed {self.observed.shape}; expected one number or one a seed")
        if (self.rule == "k-of-n") != (self.k is not None):
            raise InputError(f"claim {self.text!r}: rule {self.rule} with k={self.k}; expected k with k-of-n only")
        if self.k is not None and not len(self.observed) / 2 < self.k <= max(len(self.observed), SEEDS):
            raise InputError(f"claim {self.text!r}: k={self.k} of {len(self.observed)}; expected a majority")

    @cached_property
    def _ends(self) -> tuple[float, float]:
        low = -np.inf if self.at_least is None else float(self.at_least)
        return low, np.inf if self.at_most is None else float(self.at_most)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """What the rule compares with the bound: the range of the numbers, or the interval of their mean."""
        if self.rule == "interval":
            return t_interval(self.observed)
        return float(self.observed.min()), float(self.observed.max())

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the claim holds, is refuted, or stays undecided."""
        low, high = self._ends
        if np.isnan(self.observed).any() or (self.rule != "exact" and len(self.observed) < SEEDS):
            return "undecided"
        inside = (self.observed >= low) & (self.observed <= high)
        if self.rule == "exact":
            return "holds" if inside.all() else "refuted"
        if self.k is not None:
            return "holds" if inside.sum() >= self.k else "refuted" if (~inside).sum() >= self.k else "undecided"
        left, right = self.interval
        if left >= low and right <= high:
            return "holds"
        return "refuted" if right < low or left > high else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; what is not finite becomes null."""
        low, high = self.interval
        numbers = {"value": float(self.observed.mean()), "low": low, "high": high}
        return {
            "text": self.text,
            "verdict": self.verdict,
            **{k: v if np.isfinite(v) else None for k, v in numbers.items()},
            "n": len(self.observed),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "rule": self.rule if self.k is None else f"{self.k}-of-{len(self.observed)}",
            "key": self.key,
            "refuted_by": list(self.refuted_by),
        }


def outcome(real: Iterable[Claim], shams: Mapping[str, Iterable[Claim]]) -> str:
    """The row's outcome: reproduced, not reproduced, not separated or undecided.

    Every key claim must hold, and every sham must refute each claim that names it.
    """
    key = [c for c in real if c.key]
    if not key:
        raise InputError("claims: none is a key claim; expected at least one that decides")
    verdicts = {c.verdict for c in key}
    if "refuted" in verdicts:
        return "not reproduced"
    if "undecided" in verdicts:
        return "undecided"
    for name, claims in shams.items():
        named = [c.verdict for c in claims if name in c.refuted_by]
        if not named or "holds" in named:
            return "not separated"
        if "undecided" in named:
            return "undecided"
    return "reproduced"


def check_module(module: ModuleType) -> Paper:
    """The module's paper, once it is known to have all that the runner calls; InputError otherwise."""
    paper = getattr(module, "PAPER", None)
    if not isinstance(paper, Paper):
        raise InputError(f"{module.__name__}: no PAPER; expected a Paper")
    for name in ("setup", "experiment", "claims", "figure"):
        if not callable(getattr(module, name, None)):
            raise InputError(f"{module.__name__}: no function {name}; expected setup, experiment, claims and figure")
    return paper
