"""Requirements on metrics: an expression, or a versioned policy file.

Expression: ``METRIC OP NUMBER`` joined by ``and``, with OP one of <=, >=, <, >; ``low(METRIC)`` and ``high(METRIC)``
take an end of the interval in place of the value. Policy (TOML): ``policy = 1`` and ``require = ["...", "..."]``.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from pathlib import Path

from assay.audit.result import Audit
from assay.runtime.errors import InputError, unknown
from assay.runtime.toml import read_toml

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_TERM = re.compile(
    r"^\s*(?:(low|high)\(\s*([\w.@-]+)\s*\)|([\w.@-]+))\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*$"
)


@dataclass(frozen=True)
class Requirement:
    """``part`` of ``metric`` stands in relation ``op`` to ``bound``."""

    metric: str
    op: str
    bound: float
    part: str = "value"

    def __str__(self) -> str:
        name = self.metric if self.part == "value" else f"{self.part}({self.metric})"
        return f"{name} {self.op} {self.bound:g}"

    def failure(self, audit: Audit) -> str | None:
        """Why the audit does not meet this; None when it does. An unknown metric is an InputError."""
        metrics = audit.metrics
        if self.metric not in metrics:
            for name, section in audit.sections.items():
                if section.skipped and self.metric.startswith(name):
                    return f"{self}: not measured ({section.skipped})"
            raise unknown("metric in --require:", self.metric, metrics)
        observed = getattr(metrics[self.metric], self.part)
        if observed is None:
            return f"{self}: no {self.part} was resolved"
        return None if OPERATORS[self.op](observed, self.bound) else f"{self}: observed {observed:.4g}"


def parse(text: str) -> list[Requirement]:
    """The requirements in an expression, or in the policy file that ``text`` names."""
    if text.endswith(".toml"):
        return _policy(Path(text))
    return _terms(text)


def _terms(text: str) -> list[Requirement]:
    return [_term(t) for t in " ".join(text.split()).split(" and ")]


def _term(text: str) -> Requirement:
    match = _TERM.match(text)
    if match is None:
        raise InputError(
            f"--require: cannot read {text.strip()!r}; expected METRIC OP NUMBER such as calibration.ece<=0.05"
        )
    part, inner, name, op, bound = match.groups()
    try:
        return Requirement(inner or name, op, float(bound), part or "value")
    except ValueError as error:
        raise InputError(f"--require: {bound!r} is no number") from error


def _policy(path: Path) -> list[Requirement]:
    table = read_toml(path, f"--require {path}")
    terms = table.get("require")
    if (
        table.get("policy") != 1
        or not isinstance(terms, list)
        or not all(isinstance(t, str) for t in terms)
        or not terms
    ):
        raise InputError(f"--require {path}: expected 'policy = 1' and 'require = [\"METRIC <= NUMBER\", ...]'")
    return [r for t in terms for r in _terms(t)]
