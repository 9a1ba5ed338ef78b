"""What an audit returns, and the paired differences between two audits."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.audit.property import Section
from assay.runtime import documents, statistics
from assay.runtime.metric import Metric, Samples

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "assay/1"


class Shown:
    """Shows itself in a notebook, saves itself as a folder of reports; the writing is the report package's."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        raise TypeError(f"{type(self).__name__} has no dict form")

    def to_json(self) -> str:
        """One JSON document, schema ``assay/1``."""
        return documents.dumps(self.to_dict())

    def _repr_html_(self) -> str:
        return str(_report().notebook(self))

    def save(self, folder: str | Path) -> Path:
        """Write report.html, report.json and report.md into ``folder``."""
        return Path(_report().save(self, Path(folder)))


def finite(value: Any) -> Any:
    """``value`` with null for every number that strict JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _report() -> Any:
    # The report is a higher layer: looked up when asked for, so that audits can be made without it.
    return importlib.import_module("assay.report")


@dataclass(frozen=True)
class Audit(Shown):
    """Sections by property name, in the order they were measured, and how the audit was made."""

    name: str
    profile: str
    seed: int
    sections: Mapping[str, Section]
    titles: Mapping[str, str]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric by its dotted name."""
        return {m.name: m for s in self.sections.values() for m in s.metrics}

    @property
    def samples(self) -> dict[str, Samples]:
        """The per-sample values behind the metrics that have them."""
        return {k: v for s in self.sections.values() for k, v in s.samples.items()}

    def findings(self, n: int = 3) -> list[str]:
        """The ``n`` worst findings in words, at most one a property."""
        worst = [max(s.findings) for s in self.sections.values() if s.findings]
        return [text for _, text in sorted(worst, reverse=True)[:n]]

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]

    def to_frame(self) -> pd.DataFrame:
        """One row a metric (needs pandas)."""
        import pandas as pd

        return pd.DataFrame([m.to_dict() for m in self.metrics.values()]).set_index("name")

    def to_dict(self) -> dict[str, Any]:
        sections = {k: {"title": self.titles[k], **s.to_dict()} for k, s in self.sections.items()}
        head = {"schema": SCHEMA, "kind": "audit", "name": self.name, "profile": self.profile, "seed": self.seed}
        return finite({**head, "meta": dict(self.meta), "findings": self.findings(), "sections": sections})


@dataclass(frozen=True)
class Effect:
    """The change of one metric: after - before, its paired interval, and whether Holm's correction lets it stand.

    ``control`` is the metric after the same work without the method's ingredient.
    """

    name: str
    before: float | None
    after: float | None
    control: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    significant: bool = False
    better: str | None = None
    unit: str = ""
    interval: str | None = None

    @property
    def verdict(self) -> str:
        """'better', 'worse', 'changed' or '' (no significant change)."""
        if not self.significant or self.difference is None:
            return ""
        if self.better is None:
            return "changed"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"


def differences(before: Audit, after: Audit, control: Audit | None = None) -> list[Effect]:
    """One Effect for each metric that both audits hold, paired over samples where both kept them."""
    kept, b_samples, a_samples = [], before.samples, after.samples
    after_metrics = after.metrics
    control_metrics = control.metrics if control is not None else {}
    for name, b in before.metrics.items():
        a = after_metrics.get(name)
        if a is None:
            continue
        c = control_metrics.get(name)
        plain = {"name": name, "before": b.value, "after": a.value, "control": c.value if c else None}
        pair = _aligned(b_samples.get(name), a_samples.get(name))
        if pair is not None and len(pair[0]) >= 20:
            statistic = b_samples[name].statistic
            d, low, high, p = _paired(b, a, statistic, *pair)
            named = statistics.named_difference(statistic)
            plain |= {"difference": d, "low": low, "high": high, "p": p, "interval": named}
        elif a.value is not None and b.value is not None:
            plain["difference"] = a.value - b.value
        kept.append({**plain, "better": a.better, "unit": a.unit})
    return [Effect(**row) for row in _mark(kept)]


def _paired(b: Metric, a: Metric, statistic: str, before: np.ndarray, after: np.ndarray) -> Sequence[float]:
    """Difference, its interval and p."""
    if statistic == "resampled" and b.value is not None and a.value is not None:
        return statistics.paired_resamples(b.value, a.value, before[:, 0], after[:, 0])
    return statistics.paired_differences(statistic, before, after)


def _aligned(a: Samples | None, b: Samples | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Values of the samples that both sides measured, in the same order."""
    if a is None or b is None or a.statistic != b.statistic or a.values.shape[1] != b.values.shape[1]:
        return None
    _, i, j = np.intersect1d(a.index, b.index, return_indices=True)
    return (a.values[i], b.values[j]) if len(i) else None


def _mark(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tested = [k for k, r in enumerate(rows) if r.get("p") is not None]
    if tested:
        for k, rejected in zip(tested, statistics.holm(np.array([rows[k]["p"] for k in tested])), strict=True):
            rows[k]["significant"] = bool(rejected)
    return rows


@dataclass(frozen=True)
class Effects(Shown):
    """What a repair did: the audits before, after each step and of the control, and the table of differences.

    ``forgetting`` holds what unlearning adds (one row a model: subject, forgotten, retrained).
    """

    name: str
    before: Audit
    steps: Sequence[tuple[str, Audit]]
    rows: Sequence[Effect]
    control: Audit | None = None
    forgetting: Sequence[Mapping[str, Any]] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def after(self) -> Audit:
        """The audit after the last step."""
        return self.steps[-1][1]

    def changed(self) -> list[Effect]:
        """The rows that stand after Holm's correction."""
        return [r for r in self.rows if r.significant]

    def __getitem__(self, name: str) -> Effect:
        return {r.name: r for r in self.rows}[name]

    def to_frame(self) -> pd.DataFrame:
        """One row a metric (needs pandas)."""
        import pandas as pd

        return pd.DataFrame([{**asdict(r), "verdict": r.verdict} for r in self.rows]).set_index("name")

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": "effects",
            "name": self.name,
            "meta": dict(self.meta),
            "rows": finite([{**asdict(r), "verdict": r.verdict} for r in self.rows]),
            "forgetting": finite([dict(r) for r in self.forgetting]),
            "before": self.before.to_dict(),
            "steps": [{"method": m, "audit": a.to_dict()} for m, a in self.steps],
            "control": self.control.to_dict() if self.control is not None else None,
        }
