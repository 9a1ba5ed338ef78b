"""What an audit measures: a value with its interval, and the per-sample values behind it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from assay.runtime import statistics
from assay.runtime.errors import InputError
from assay.runtime.random import derive

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """One measured number. ``interval`` says how low and high were found; ``how`` the method with its options."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    n: int | None = None
    unit: str = ""
    better: Better | None = None
    how: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; non-finite numbers become null."""
        return {k: _finite(v) for k, v in asdict(self).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Samples:
    """Per-sample values (n, k) in the order of ``index`` (n,), and the name of the statistic that makes the metric.

    The statistic "resampled" is for metrics that no weights on samples give: its values (b, 1) are the metric on b
    resamples, which ``index`` names, so that two models measured on the same resamples can be paired.
    """

    values: np.ndarray
    index: np.ndarray
    statistic: str = "mean"

    def __post_init__(self) -> None:
        if len(self.values) != len(self.index):
            raise InputError(f"samples: {len(self.values)} values for {len(self.index)} indices; expected one each")


def measured(
    name: str,
    values: np.ndarray,
    index: np.ndarray,
    *,
    statistic: str = "mean",
    unit: str = "",
    better: Better | None = None,
    how: str = "",
    rate: bool = True,
    seed: int = 0,
) -> tuple[Metric, Samples]:
    """A metric and its samples from per-sample values (n,) or (n, k).

    Rates (0/1 values under "mean") get Wilson's interval, the lowest rate of classes (under "worst_class") one from
    those of all of them, other statistics the bootstrap's when n >= 50. ``rate=False``: values are no successes and
    failures, even where all are 0 or 1.
    """
    if len(values) == 0:
        raise InputError(f"{name}: no samples to measure; expected at least one")
    table = np.asarray(values, dtype=float).reshape(len(values), -1)
    value, low, high, interval = statistics.point(statistic, table), None, None, None
    counted = rate and np.isin(table[:, 0], (0, 1)).all()
    if statistic == "mean" and counted:
        low, high = statistics.wilson(int(table.sum()), len(table))
        interval = "Wilson 95%"
    elif statistic == "worst_class" and counted:
        low, high = statistics.worst_rate(table)
        interval = "Clopper-Pearson 95%, all classes"
    elif len(table) >= 50:
        low, high = statistics.bootstrap(statistic, table, seed=seed)
        interval = statistics.named(statistic, table)
    return (
        Metric(name, value, low, high, interval, len(table), unit, better, how),
        Samples(table, np.asarray(index), statistic),
    )


def resampled(
    name: str,
    value: float,
    draws: np.ndarray,
    source: str,
    *,
    better: Better | None = None,
    how: str = "",
    n: int | None = None,
    least: float = -math.inf,
    seed: int = 0,
) -> tuple[Metric, Samples]:
    """A metric whose error comes from ``draws`` (b,), its values on resamples of ``source`` that ``seed`` fixes.

    ``least`` is the lowest value that the metric can take.
    """
    draws = np.asarray(draws, dtype=float)
    half = statistics.NORMAL * float(draws.std(ddof=1))
    interval = f"{len(draws)} resamples, standard error 95%"
    names = np.array([derive(seed, source, len(draws), k) for k in range(len(draws))])
    return (
        Metric(name, value, max(value - half, least), value + half, interval, n, "", better, how),
        Samples(draws[:, None], names, "resampled"),
    )
