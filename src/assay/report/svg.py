"""SVG primitives: escaped tags, linear scales with round ticks, and the frame that the charts share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from rich.cells import cell_len

from assay.runtime.printable import printable

WIDTH, HEIGHT = 460, 290
SERIES = 8
DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 2", "12 4", "4 2 1 2", "3 5")


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """One element; ``class_`` and ``stroke_width`` become "class" and "stroke-width"; plain text is escaped."""
    parts = []
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.5g}" if isinstance(value, float) else str(value)
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    inner = Markup("").join(children)
    return Markup(f"<{name}{''.join(parts)}>{inner}</{name}>")


def clip(text: object, length: int) -> str:
    """``text`` on one line without control characters, cut with an ellipsis."""
    line = printable(str(text))
    return line if len(line) <= length else line[: length - 1] + "…"


def fitted(text: object, columns: int) -> str:
    """``clip``, but to a width in ``columns``, of which letters of East Asian scripts take two."""
    line = printable(str(text))
    if cell_len(line) <= columns:
        return line
    widths = itertools.accumulate(map(cell_len, line))
    return line[: sum(w < columns for w in widths)] + "…"


def label(x: float, y: float, text: object, *, anchor: str = "middle", class_: str = "t", length: int = 40) -> Markup:
    """Text at a point; ``fitted`` to ``length`` columns with the whole as its tooltip."""
    short, whole = fitted(text, length), clip(text, 200)
    inner = [str(escape(short))] + ([tag("title", whole)] if short != whole else [])
    return tag("text", *map(Markup, inner), x=float(x), y=float(y), text_anchor=anchor, class_=class_)


@dataclass
class Names:
    """Unique ids within one document."""

    prefix: str = "f"
    counter: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __call__(self) -> str:
        return f"{self.prefix}{next(self.counter)}"


def figure(names: Names, title: str, description: str, body: Sequence[str], height: float = HEIGHT) -> Markup:
    """The svg element: role img, with its title and description."""
    key = names()
    head = [tag("title", clip(title, 200), id=f"{key}t"), tag("desc", clip(description, 600), id=f"{key}d")]
    return tag(
        "svg",
        *head,
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=f"{key}t {key}d",
    )


def step_of(span: float, count: int) -> float:
    """The round step (1, 2 or 5 times a power of ten) that cuts ``span`` into about ``count`` parts."""
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if raw <= m * power * (1 + 1e-9))


def tick_text(value: float, step: float) -> str:
    """A tick's label with the decimals that its step needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or step < 1e-4:
        digits = min(max(math.floor(math.log10(abs(value))) - math.floor(math.log10(step) + 1e-9), 0), 15)
        mantissa, _, power = f"{value:.{digits}e}".partition("e")
        return f"{mantissa}e{int(power)}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly onto [start, end] in user units; ``step`` between its ticks."""

    low: float
    high: float
    start: float
    end: float
    step: float

    @classmethod
    def of(cls, values: np.ndarray, start: float, end: float, *, zero: bool = False, count: int = 5) -> Scale:
        """A scale that holds every finite value, ending on round numbers; ``zero`` is included when asked."""
        finite = np.clip(values[np.isfinite(values)], -1e300, 1e300)
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if low >= 0 and high <= 1 and high - low >= 0.5:
            low, high = 0.0, 1.0
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
            pad = abs(low) * 0.1 or 0.5
            low, high = low - pad, high + pad
        step = step_of(high - low, count)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end, step)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def map(self, values: np.ndarray) -> np.ndarray:
        """The scale of every value."""
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Position and label of every tick."""
        n = round((self.high - self.low) / self.step)
        values = [self.low + k * self.step for k in range(n + 1)]
        return [(self(v), tick_text(0.0 if abs(v) < self.step * 1e-6 else v, self.step)) for v in values]


@dataclass(frozen=True)
class Box:
    """The plotting area in user units."""

    left: float = 56
    right: float = WIDTH - 14
    top: float = 12
    bottom: float = HEIGHT - 46


def y_axis(box: Box, scale: Scale, title: str) -> list[Markup]:
    """Horizontal grid lines, labels at the left, the axis title turned by 90 degrees."""
    parts = []
    for at, text in scale.ticks():
        parts.append(tag("line", x1=box.left, x2=box.right, y1=at, y2=at, class_="g"))
        parts.append(label(box.left - 7, at + 4, text, anchor="end"))
    if title:
        middle = (box.top + box.bottom) / 2
        turned = f"translate(13 {middle:.5g}) rotate(-90)"
        parts.append(tag("text", fitted(title, 42), transform=turned, text_anchor="middle", class_="t a"))
    return parts


def x_axis(box: Box, ticks: Sequence[tuple[float, str]], title: str, *, grid: bool = False) -> list[Markup]:
    """The base line, labels below it, the axis title."""
    parts = [tag("line", x1=box.left, x2=box.right, y1=box.bottom, y2=box.bottom, class_="b")]
    for at, text in ticks:
        if grid:
            parts.append(tag("line", x1=at, x2=at, y1=box.top, y2=box.bottom, class_="g"))
        else:
            parts.append(tag("line", x1=at, x2=at, y1=box.bottom, y2=box.bottom + 4, class_="b"))
        parts.append(label(at, box.bottom + 18, text, length=14))
    if title:
        parts.append(label((box.left + box.right) / 2, box.bottom + 38, title, class_="t a", length=60))
    return parts


def points(x: np.ndarray, y: np.ndarray) -> str:
    """The path through points; a gap where one is not finite."""
    text, pen = [], "M"
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            text.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(text)


def glyph(k: int, size: float = 3.2) -> str:
    """The outline of marker ``k`` about the origin, in relative path commands."""
    r = size
    return (
        f"m{-r:g} 0a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z",
        f"m{-r:g} {-r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z",
        f"m0 {-1.25 * r:g}l{1.2 * r:g} {2.2 * r:g}h{-2.4 * r:g}z",
        f"m0 {-1.4 * r:g}l{1.4 * r:g} {1.4 * r:g}l{-1.4 * r:g} {1.4 * r:g}l{-1.4 * r:g} {-1.4 * r:g}z",
    )[k % 4]


def markers(x: np.ndarray, y: np.ndarray, k: int, size: float = 3.2) -> str:
    """One path with marker ``k`` at every finite point."""
    keep, shape = np.isfinite(x) & np.isfinite(y), glyph(k, size)
    return "".join(f"M{a:.1f} {b:.1f}{shape}" for a, b in zip(x[keep].tolist(), y[keep].tolist(), strict=True))
