"""Requirements on a report: an expression, or a versioned policy file.

Expression: ``METRIC OP NUMBER`` joined by ``and``, with OP one of <=, >=, <, >. ``low(METRIC)`` and ``high(METRIC)``
take an end of the interval in place of the value; ``change(METRIC)``, ``low(change(METRIC))`` and
``high(change(METRIC))`` the paired change of a repair or a comparison. A METRIC of other characters than letters,
digits, ``_.@-`` stands in quotes, single or double.

Policy (TOML): ``policy = 1`` with ``require = ["EXPRESSION", ..]``, or ``policy = 2`` with ``[[require]]`` tables:
``that`` (an expression), or ``metric``, ``worse_by`` and ``baseline`` (a recorded report); and for both ``reason`` and
``severity``.
"""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from assay.gates.evidence import Evidence, Number, change, evidence, read_report
from assay.runtime.errors import InputError, unknown
from assay.runtime.toml import read_toml

State = Literal["met", "failed", "undecided"]
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
SEVERITIES = ("error", "warning")
UNDECIDED = ("pass", "fail")
_TERM = re.compile(r"^\s*([\w.@()\s\0-]+?)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*$")
_LEFT = re.compile(r"^(?:(low|high)\(\s*)?(?:(change)\(\s*)?(\0\d+\0|[\w.@-]+)([\s)]*)$")
_PLAIN = re.compile(r"[\w.@-]+")
_QUOTED = re.compile(r"\"[^\"]+\"|'[^']+'")
_HIDDEN = re.compile(r"\0(\d+)\0")


@dataclass(frozen=True)
class Bound:
    """``part`` (value, low or high) of ``metric``, or of its change, stands in relation ``op`` to ``bound``."""

    metric: str
    op: str
    bound: float
    part: str = "value"
    of_change: bool = False

    def __str__(self) -> str:
        quoted = self.metric if _PLAIN.fullmatch(self.metric) else f'"{self.metric}"'
        name = f"change({quoted})" if self.of_change else quoted
        return f"{name if self.part == 'value' else f'{self.part}({name})'} {self.op} {self.bound:g}"

    def judge(self, found: Evidence) -> tuple[State, str]:
        """Whether the evidence meets this, and in words what was seen."""
        number: Number = found.metrics[self.metric]
        if self.of_change:
            if found.changes is None:
                raise InputError(f"{self}: {found.source} records one audit; expected a repair's or a comparison's")
            number = found.changes.get(self.metric, Number(None))
        observed = getattr(number, self.part)
        if observed is None:
            return "failed", f"no {self.part} was resolved"
        return ("met" if OPERATORS[self.op](observed, self.bound) else "failed"), f"observed {shown(number)}"


@dataclass(frozen=True)
class NotWorse:
    """``metric`` is at most ``worse_by`` worse than in the recorded report ``baseline``, by the interval of the change.

    It fails where the whole interval is worse than that, is met where the whole interval is not, and is undecided where
    the interval holds the limit: that passes, unless ``undecided`` is "fail".
    """

    metric: str
    worse_by: float
    baseline: Evidence
    undecided: str = "pass"

    def __str__(self) -> str:
        return f"{self.metric} at most {self.worse_by:g} worse than in {self.baseline.source}"

    def judge(self, found: Evidence) -> tuple[State, str]:
        """Whether the evidence meets this, and in words what was seen."""
        before, after = self.baseline.metrics[self.metric], found.metrics[self.metric]
        for what in ("profile", "test_data"):
            ours, theirs = getattr(found, what), getattr(self.baseline, what)
            if ours != theirs:
                raise InputError(
                    f"{self}: {what.replace('_', ' ')} {str(ours)[:12]} against {str(theirs)[:12]} in the baseline; "
                    "expected the same"
                )
        if after.better is None:
            raise InputError(f"{self}: {self.metric} has no better direction; expected a metric that has one")
        moved = change(before, after)
        if moved.value is None:
            return "failed", "no value was resolved"
        sign = 1 if after.better == "lower" else -1  # of a change for the worse
        ends = [sign * (moved.value if e is None else e) for e in (moved.low, moved.high)]
        seen = f"{shown(before)} became {shown(after)}, a change of {shown(moved, sign='+')}"
        if min(ends) > self.worse_by:
            return "failed", seen
        if max(ends) <= self.worse_by:
            return "met", seen
        return ("failed" if self.undecided == "fail" else "undecided"), f"{seen}: the interval holds the limit"


@dataclass(frozen=True)
class Requirement:
    """A rule, why it is required, and whether missing it is an error or a warning."""

    rule: Bound | NotWorse
    reason: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        return str(self.rule)


@dataclass(frozen=True)
class Verdict:
    """What a requirement came to: its text, the state, what was seen, and the requirement's reason and severity."""

    requirement: str
    metric: str
    state: State
    seen: str
    reason: str
    severity: str

    @property
    def blocks(self) -> bool:
        """Whether this stops a sign-off."""
        return self.state == "failed" and self.severity == "error"

    def __str__(self) -> str:
        return f"{self.requirement}: {self.seen}" + (f" (required because: {self.reason})" if self.reason else "")

    def to_dict(self) -> dict[str, str]:
        """A JSON-ready dict."""
        return asdict(self)


def shown(number: Number, sign: str = "") -> str:
    """A number with its interval, to four digits."""
    if number.value is None:
        return "not resolved"
    text = f"{number.value:{sign}.4g}"
    if number.low is None or number.high is None:
        return text
    return f"{text} [{number.low:{sign}.4g}, {number.high:{sign}.4g}]"


def judge(requirements: Sequence[Requirement], found: Evidence) -> list[Verdict]:
    """One verdict a requirement. InputError names every metric that neither the report nor a skipped property has."""
    absent = [r.rule.metric for r in requirements if not _known(r.rule.metric, found)]
    absent += [
        r.rule.metric
        for r in requirements
        if isinstance(r.rule, NotWorse) and r.rule.metric not in r.rule.baseline.metrics
    ]
    if absent:
        rest = f" (and {', '.join(repr(a) for a in absent[1:])})" if absent[1:] else ""
        raise InputError(f"{unknown('metric in --require:', absent[0], found.metrics)}{rest}")
    verdicts = []
    for r in requirements:
        if r.rule.metric in found.metrics:
            state, seen = r.rule.judge(found)
        else:
            state, seen = "failed", f"not measured ({_skipped(r.rule.metric, found)})"
        verdicts.append(Verdict(str(r), r.rule.metric, state, seen, r.reason, r.severity))
    return verdicts


def _known(metric: str, found: Evidence) -> bool:
    return metric in found.metrics or _skipped(metric, found) is not None


def _skipped(metric: str, found: Evidence) -> str | None:
    """Why the property that a metric belongs to was skipped."""
    names = [k for k, p in found.parts.items() if p.skipped is not None and (metric == k or metric.startswith(f"{k}."))]
    return found.parts[names[0]].skipped if names else None


def parse(text: str) -> list[Requirement]:
    """The requirements in an expression, or in the policy file that ``text`` names (``.toml``)."""
    if text.endswith(".toml"):
        return _policy(Path(text))
    return [Requirement(b) for b in bounds(text)]


def bounds(text: str) -> list[Bound]:
    """The bounds of an expression."""
    names: list[str] = []

    def hidden(quoted: re.Match[str]) -> str:
        names.append(quoted[0][1:-1])
        return f"\0{len(names) - 1}\0"

    plain = " ".join(_QUOTED.sub(hidden, text.replace("\0", " ")).split())
    return [_bound(term, names) for term in plain.split(" and ")]


def _bound(text: str, names: Sequence[str]) -> Bound:
    """``METRIC OP NUMBER`` with a number between NULs in place of each of the quoted ``names``."""
    match = _TERM.match(text)
    left = _LEFT.match(match[1]) if match is not None else None
    if match is None or left is None or left[4].count(")") != (left[1] is not None) + (left[2] is not None):
        written = _HIDDEN.sub(lambda found: f'"{names[int(found[1])]}"', text)
        raise InputError(f"--require: cannot read {written!r}; expected METRIC OP NUMBER such as calibration.ece<=0.05")
    try:
        name = names[int(left[3][1:-1])] if left[3][0] == "\0" else left[3]
        bound = float(match[3])
    except ValueError as error:
        raise InputError(f"--require: {match[3]!r} is no number") from error
    if math.isinf(bound):
        raise InputError(f"--require: {match[3]!r} is too large; expected a number of at most {sys.float_info.max:.2g}")
    return Bound(name, match[2], bound, left[1] or "value", left[2] is not None)


def _policy(path: Path) -> list[Requirement]:
    where = f"--require {path}"
    table = read_toml(path, where)
    version, entries = table.get("policy"), table.get("require")
    if type(version) is not int or version not in (1, 2) or not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: expected 'policy = 1' or 'policy = 2' and at least one 'require'")
    for key in table:
        if key not in ("policy", "require"):
            raise unknown(f"key in {where}:", key, ("policy", "require"))
    if version == 1:
        if not all(isinstance(e, str) for e in entries):
            raise InputError(f"{where}: policy 1 expects 'require = [\"METRIC <= NUMBER\", ...]'")
        return [r for e in entries for r in _within(where, e)]
    return [r for k, e in enumerate(entries, 1) for r in _entry(f"{where}: require {k}", e, path.parent)]


def _within(where: str, text: str) -> list[Requirement]:
    try:
        return [Requirement(b) for b in bounds(text)]
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('--require: ')}") from error


KEYS = ("that", "metric", "worse_by", "baseline", "undecided", "reason", "severity")


def _entry(where: str, entry: Any, folder: Path) -> list[Requirement]:
    """The requirements of one ``[[require]]`` table."""
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected a table [[require]]")
    for key in entry:
        if key not in KEYS:
            raise unknown(f"key in {where}:", key, KEYS)
    texts = {k: entry[k] for k in KEYS if k in entry and k != "worse_by"}
    for key, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {key} = {value!r}; expected a text")
    severity = _choice(where, "severity", texts.get("severity", "error"), SEVERITIES)
    rules: list[Requirement] = []
    if "that" in entry:
        if other := [k for k in ("metric", "worse_by", "baseline", "undecided") if k in entry]:
            raise InputError(f"{where}: 'that' with {', '.join(other)}; expected one form of requirement")
        rules = _within(where, texts["that"])
    else:
        rules = [Requirement(_not_worse(where, entry, folder))]
    return [replace(r, reason=" ".join(texts.get("reason", "").split()), severity=severity) for r in rules]


def _not_worse(where: str, entry: Mapping[str, Any], folder: Path) -> NotWorse:
    if missing := [k for k in ("metric", "worse_by", "baseline") if k not in entry]:
        raise InputError(f"{where}: no {', '.join(missing)}; expected 'that', or 'metric', 'worse_by' and 'baseline'")
    by = entry["worse_by"]
    if isinstance(by, bool) or not isinstance(by, (int, float)) or not 0 <= by <= sys.float_info.max:
        raise InputError(f"{where}: worse_by = {by!r}; expected a number of at least 0")
    undecided = _choice(where, "undecided", entry.get("undecided", "pass"), UNDECIDED)
    try:
        recorded = evidence(read_report(folder / entry["baseline"]), entry["baseline"])
    except InputError as error:
        raise InputError(f"{where}: baseline {error}") from error
    return NotWorse(entry["metric"], float(by), recorded, undecided)


def _choice(where: str, key: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise unknown(f"{key} in {where}:", value, choices)
    return value
