"""The parallel plot of effects: one axis a headline metric, better always to the right."""

from __future__ import annotations

import numpy as np

from assay.audit.result import Effect, Effects
from assay.report import svg, text
from assay.report.charts import Chart, legend
from assay.report.svg import Names, label, tag

AXES, ROW, LEFT, RIGHT = 14, 56.0, 30.0, svg.WIDTH - 30.0


def parallel(effects: Effects, names: Names) -> Chart | None:
    """Axes lie one below the other, so that names fit on a phone; lines join before, after and control.

    An axis spans at least a twentieth (a tenth of the largest value where it leaves [0, 1]), so that a negligible
    change looks negligible; where lower is better it runs from right to left. None without comparable metrics.
    """
    rows = [r for _, found in text.shown(effects) for r in found if _finite(r.before) and _finite(r.after)]
    rows = sorted(rows, key=lambda r: not r.significant)[:AXES]
    if not rows:
        return None
    top, columns = 34.0, ["before", "after"] + (["control"] if effects.control is not None else [])
    body = [label(LEFT, 14, "← worse", anchor="start", class_="t a")]
    body.append(label(RIGHT, 14, "better →", anchor="end", class_="t a"))
    texts = []
    places: dict[str, list[tuple[float, float]]] = {c: [] for c in columns}
    for k, row in enumerate(rows):
        y = top + ROW * k + 20
        left, right = _ends(row, columns)
        state = f"  {text.VERDICT[row.verdict]}" if row.verdict else ""
        undirected = "" if row.better else " (no direction)"
        texts.append(label(LEFT, y - 10, f"{row.name}{undirected}{state}", anchor="start", class_="t a o", length=58))
        body.append(tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="g"))
        texts.append(label(LEFT, y + 15, text.number(left), anchor="start", class_="t n o"))
        texts.append(label(RIGHT, y + 15, text.number(right), anchor="end", class_="t n o"))
        for c in columns:
            value = getattr(row, c)
            at = LEFT + (value - left) / (right - left) * (RIGHT - LEFT) if _finite(value) else float("nan")
            places[c].append((at, y))
    for k, c in enumerate(columns):
        x, y_all = np.array(places[c]).T
        parts = [
            tag("path", d=svg.points(x, y_all), class_="l", stroke_dasharray=svg.DASHES[k] or None),
            tag("path", d=svg.markers(x, y_all, k, 4), class_="m"),
        ]
        body.append(tag("g", *parts, class_=f"s{k}"))
    what = f"{len(rows)} metrics, one axis each, better to the right; lines for {', '.join(columns)}."
    drawn = svg.figure(names, "Effects at a glance", what, body + texts, top + ROW * len(rows) + 10)
    marks = [(name, _both(k)) for k, (name, _) in enumerate(legend(columns, "line"))]
    return Chart("Effects at a glance", drawn, marks, "One axis a metric, its ends labelled; better lies to the right.")


def _both(k: int) -> svg.Markup:
    stroke = tag("path", d="M0 6H26", class_="l", stroke_dasharray=svg.DASHES[k] or None)
    mark = tag("path", d=svg.markers(np.array([13.0]), np.array([6.0]), k), class_="m")
    return tag("svg", stroke, mark, viewBox="0 0 26 12", width=26, height=12, aria_hidden="true", class_=f"s{k}")


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _ends(row: Effect, columns: list[str]) -> tuple[float, float]:
    """The values at the left (worse) and right (better) end of a metric's axis."""
    values = [float(v) for c in columns if _finite(v := getattr(row, c))]
    low, high = min(values), max(values)
    unit = low >= 0 and high <= 1
    least = 0.05 if unit else 0.1 * max(abs(low), abs(high))
    half = max((high - low) * 0.65, least / 2, 1e-12)
    middle = (low + high) / 2
    a, b = middle - half, middle + half
    if unit:
        a, b = max(a, 0.0), min(b, 1.0)
    return (b, a) if row.better == "lower" else (a, b)
