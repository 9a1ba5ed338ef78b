"""A metric over runs: one row a run, a dot with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from assay.gates.evidence import Number
from assay.report import svg
from assay.report.svg import Scale, label, tag

ROW, TOP, LEFT, RIGHT = 34.0, 14.0, 24.0, svg.WIDTH - 24.0


def over_runs(name: str, rows: Sequence[tuple[str, Number]]) -> Markup:
    """The figure of (run, number) pairs, of which each has a value."""
    ends = [e for _, n in rows for e in (n.value, n.low, n.high) if e is not None]
    scale = Scale.of(np.array(ends), LEFT, RIGHT, count=6)
    bottom = TOP + ROW * len(rows)
    body: list[Markup] = []
    for at, text in scale.ticks():
        body.append(tag("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="g"))
        body.append(label(at, bottom + 16, text, length=14))
    for k, (run, number) in enumerate(rows):
        y = TOP + ROW * k + 24
        body.append(label(LEFT, y - 10, run, anchor="start", class_="t a o", length=64))
        if number.low is not None and number.high is not None:
            low, high = scale(number.low), scale(number.high)
            body.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_="l", stroke_opacity="0.5"))
        if number.value is not None:
            body.append(tag("circle", cx=scale(number.value), cy=y, r=4.0, class_="m"))
    body.append(label((LEFT + RIGHT) / 2, bottom + 36, name, class_="t a", length=60))
    what = f"{name} of {len(rows)} runs with 95% intervals."
    return svg.figure(svg.Names(), name, what, [tag("g", *body, class_="s0")], bottom + 46)
