"""Every kind of Plot as a figure: inline SVG for lines, bars, points and heat maps, PNG data for images."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from rich.cells import cell_len

from assay.audit.property import Plot
from assay.report import svg
from assay.report.svg import Box, Names, Scale, label, tag
from assay.report.text import number
from assay.runtime.random import numpy_rng

LINE_POINTS, SCATTER_POINTS, BARS, CELLS, IMAGES, SIDE = 600, 2000, 50, 50, 24, 128


@dataclass(frozen=True)
class Chart:
    """A figure ready for the page: its body, the legend (label, swatch), and what was left out, in words."""

    title: str
    body: Markup
    legend: Sequence[tuple[str, Markup]] = ()
    note: str = ""
    wide: bool = False


def draw(plot: Plot, names: Names) -> Chart:
    """The chart of ``plot``; one that cannot be drawn says why in its place, so that the report is still written."""
    try:
        return {"line": line, "scatter": scatter, "bar": bar, "heatmap": heatmap, "images": images}[plot.kind](
            plot, names
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"This figure could not be drawn: {type(error).__name__}: {svg.clip(error, 120)}"
        return Chart(plot.title, tag("p", reason, class_="empty"))


def numbers(values: Any) -> np.ndarray:
    """Floats (n,); None becomes NaN."""
    return np.asarray(values, dtype=float).reshape(-1)


def empty(plot: Plot) -> Chart:
    """A figure without data."""
    return Chart(plot.title, tag("p", "No finite values to draw.", class_="empty"))


def swatch(k: int, kind: str) -> Markup:
    """The legend's sample of series ``k``."""
    if kind == "bar":
        body = [tag("rect", x=3, y=1, width=20, height=10, class_=f"f h{k % svg.SERIES}")]
    else:
        mark = tag("path", d=svg.markers(np.array([13.0]), np.array([6.0]), k), class_="m")
        stroke = tag("path", d="M0 6H26", class_="l", stroke_dasharray=svg.DASHES[k % svg.SERIES] or None)
        body = [mark] if kind == "scatter" else [stroke]
    return tag("svg", *body, viewBox="0 0 26 12", width=26, height=12, aria_hidden="true", class_=f"s{k % svg.SERIES}")


def legend(series: Sequence[str], kind: str) -> list[tuple[str, Markup]]:
    """Labels with their swatches; none for a single series."""
    return [(svg.clip(s, 60), swatch(k, kind)) for k, s in enumerate(series)] if len(series) > 1 else []


def thin(y: np.ndarray, limit: int) -> np.ndarray:
    """Positions of at most about ``limit`` points that keep the extremes of every stretch of ``y``."""
    n = len(y)
    if n <= limit:
        return np.arange(n)
    edges = np.linspace(0, n, limit // 2 + 1).astype(int)
    kept = {0, n - 1}
    for a, b in itertools.pairwise(edges.tolist()):
        part = y[a:b]
        if np.isfinite(part).any():
            kept |= {a + int(np.nanargmin(part)), a + int(np.nanargmax(part))}
        else:
            kept.add(int(a))
    return np.array(sorted(kept))


def brief(values: np.ndarray) -> Callable[[float], str]:
    """How the values of one figure are written: as integers where all are whole, else with two decimals."""
    finite = values[np.isfinite(values)]
    whole = bool((finite == np.round(finite)).all() and (np.abs(finite) < 1e6).all())
    return lambda v: number(int(v)) if whole else number(v, 2)


def _numeric(values: Any) -> np.ndarray:
    array = numbers(values)
    return np.where(np.isfinite(array), array, np.nan)


def _positions(series: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The x of every series; names instead of numbers get the positions 0, 1, ..."""
    try:
        return {k: _numeric(s["x"]) for k, s in series.items()}, None
    except ValueError:
        order = list(dict.fromkeys(str(v) for s in series.values() for v in s["x"]))
        place = {v: float(k) for k, v in enumerate(order)}
        return {k: np.array([place[str(v)] for v in s["x"]]) for k, s in series.items()}, order


def _reference(plot: Plot, box: Box, x: Scale, y: Scale) -> list[Markup]:
    if plot.reference == "diagonal":
        low, high = max(x.low, y.low), min(x.high, y.high)
        if low >= high:
            return []
        return [tag("line", x1=x(low), y1=y(low), x2=x(high), y2=y(high), class_="r")]
    if isinstance(plot.reference, (int, float)) and y.low <= plot.reference <= y.high:
        at = y(float(plot.reference))
        return [tag("line", x1=box.left, x2=box.right, y1=at, y2=at, class_="r")]
    return []


def _ranges(plot: Plot, series: Mapping[str, Mapping[str, Any]], xs: Mapping[str, np.ndarray], box: Box) -> Any:
    ys = [_numeric(s[k]) for s in series.values() for k in ("y", "low", "high") if s.get(k) is not None]
    extra = [np.array([float(plot.reference)])] if isinstance(plot.reference, (int, float)) else []
    x_all, y_all = np.concatenate(list(xs.values())), np.concatenate([*ys, *extra])
    x = Scale.of(x_all, box.left, box.right)
    low, high = np.nanmin(x_all), np.nanmax(x_all)
    if not isinstance(plot.reference, str) and high > low and x.high - x.low > 1.2 * (high - low):
        x = Scale(float(low), float(high), box.left, box.right, x.step)
    return x, Scale.of(y_all, box.bottom, box.top)


def _x_ticks(x: Scale, order: list[str] | None) -> list[tuple[float, str]]:
    if order is None:
        first = np.ceil(x.low / x.step - 1e-9) * x.step
        values = np.arange(first, x.high + x.step * 1e-6, x.step)
        return [(x(float(v)), svg.tick_text(0.0 if abs(v) < x.step * 1e-6 else float(v), x.step)) for v in values]
    every = -(-len(order) // 8)
    return [(x(float(k)), svg.clip(name, 10)) for k, name in enumerate(order) if k % every == 0]


def _some(plot: Plot) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The first series that hold data, and a note on those left out."""
    full = {k: s for k, s in plot.series.items() if len(s.get("y", ()))}
    kept = dict(list(full.items())[: svg.SERIES])
    return kept, f"Shows {len(kept)} of {len(full)} series." if len(full) > len(kept) else ""


def _finite(series: Mapping[str, Mapping[str, Any]], xs: Mapping[str, np.ndarray]) -> bool:
    return any((np.isfinite(xs[k]) & np.isfinite(numbers(s["y"]))).any() for k, s in series.items())


def _describe(plot: Plot, series: Mapping[str, Mapping[str, Any]]) -> str:
    kind = {"line": "Line chart", "scatter": "Scatter plot", "bar": "Bar chart"}[plot.kind]
    parts = []
    for name, s in list(series.items())[:4]:
        y = _numeric(s["y"])
        if np.isfinite(y).any():
            low, high = number(float(np.nanmin(y))), number(float(np.nanmax(y)))
            parts.append(f"{name or 'values'}: {len(y)} points from {low} to {high}")
    return f"{kind} of {plot.y or 'values'} over {plot.x or 'position'}. {'; '.join(parts)}."


def line(plot: Plot, names: Names) -> Chart:
    """Lines with interval bands; long ones are thinned, extremes kept."""
    series, note = _some(plot)
    if not series:
        return empty(plot)
    xs, order = _positions(series)
    if not _finite(series, xs):
        return empty(plot)
    box = Box()
    x, y = _ranges(plot, series, xs, box)
    body = [*svg.y_axis(box, y, plot.y), *svg.x_axis(box, _x_ticks(x, order), plot.x), *_reference(plot, box, x, y)]
    for k, (name, s) in enumerate(series.items()):
        values = _numeric(s["y"])
        keep, parts = thin(values, LINE_POINTS), []
        px = x.map(xs[name][keep])
        if s.get("low") is not None and s.get("high") is not None:
            low, high = y.map(_numeric(s["low"])[keep]), y.map(_numeric(s["high"])[keep])
            ok = np.isfinite(px) & np.isfinite(low) & np.isfinite(high)
            outline = svg.points(np.r_[px[ok], px[ok][::-1]], np.r_[low[ok], high[ok][::-1]])
            parts.append(tag("path", d=outline + "Z" if outline else "", class_="v"))
        py, dash = y.map(values[keep]), svg.DASHES[k]
        parts.append(tag("path", d=svg.points(px, py), class_="l", stroke_dasharray=dash or None))
        if len(keep) <= 25:
            parts.append(tag("path", d=svg.markers(px, py, k, 2.6), class_="m"))
        body.append(tag("g", *parts, class_=f"s{k}"))
    return Chart(
        plot.title, svg.figure(names, plot.title, _describe(plot, series), body), legend([*series], "line"), note
    )


def scatter(plot: Plot, names: Names) -> Chart:
    """Points, one marker shape a series; at most SCATTER_POINTS of them, drawn at random."""
    series, note = _some(plot)
    if not series:
        return empty(plot)
    xs, order = _positions(series)
    if not _finite(series, xs):
        return empty(plot)
    box = Box()
    x, y = _ranges(plot, series, xs, box)
    total = sum(len(v) for v in xs.values())
    body = [*svg.y_axis(box, y, plot.y), *svg.x_axis(box, _x_ticks(x, order), plot.x), *_reference(plot, box, x, y)]
    for k, (name, s) in enumerate(series.items()):
        n = len(xs[name])
        quota = n if total <= SCATTER_POINTS else max(1, n * SCATTER_POINTS // total)
        keep = np.sort(numpy_rng(0, "scatter", plot.title, name).permutation(n)[:quota])
        path = svg.markers(x.map(xs[name][keep]), y.map(_numeric(s["y"])[keep]), k, 2.4 if total > 300 else 3.2)
        body.append(tag("path", d=path, class_=f"m p s{k}"))
    if total > SCATTER_POINTS:
        note = f"{note} Shows {SCATTER_POINTS:,} of {total:,} points, drawn at random.".strip()
    drawn = svg.figure(names, plot.title, _describe(plot, series), body)
    return Chart(plot.title, drawn, legend([*series], "scatter"), note)


def bar(plot: Plot, names: Names) -> Chart:
    """Grouped bars: upright for a few short names, else lying with one row a name."""
    series, note = _some(plot)
    table = {k: dict(zip(map(str, s["x"]), _numeric(s["y"]).tolist(), strict=True)) for k, s in series.items()}
    order = list(dict.fromkeys(n for column in table.values() for n in column))
    if not any(np.isfinite(v) for column in table.values() for v in column.values()):
        return empty(plot)
    if len(order) > BARS:
        first = next(iter(table.values()))
        ranked = sorted(order, key=lambda n: (not np.isfinite(first.get(n, np.nan)), first.get(n, np.nan), n))
        note = f"{note} Shows the {BARS // 2} lowest and {BARS // 2} highest of {len(order):,}.".strip()
        finite = [n for n in ranked if np.isfinite(first.get(n, np.nan))] or ranked
        order = finite if len(finite) <= BARS else [*finite[: BARS // 2], *finite[-BARS // 2 :]]
    upright = len(order) <= 12 and max(map(cell_len, order)) <= (8 if len(order) <= 6 else 4)
    shape = _upright if upright else _lying
    body, height = shape(plot, table, order)
    drawn = svg.figure(names, plot.title, _describe(plot, series), body, height)
    return Chart(plot.title, drawn, legend([*series], "bar"), note)


def _bar_values(plot: Plot, table: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> np.ndarray:
    extra = [float(plot.reference)] if isinstance(plot.reference, (int, float)) else []
    return np.array([column.get(n, np.nan) for column in table.values() for n in order] + extra)


def _upright(plot: Plot, table: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> tuple[list[Markup], float]:
    box = Box()
    y = Scale.of(_bar_values(plot, table, order), box.bottom, box.top, zero=True)
    slot = (box.right - box.left) / len(order)
    width = min(slot * 0.72 / len(table), 46)
    centres = [box.left + slot * (k + 0.5) for k in range(len(order))]
    body = [*svg.y_axis(box, y, plot.y), *svg.x_axis(box, list(zip(centres, order, strict=True)), plot.x)]
    for j, (series, column) in enumerate(table.items()):
        for c, name in zip(centres, order, strict=True):
            value = column.get(name, np.nan)
            if np.isfinite(value):
                left, top = c + (j - len(table) / 2) * width, min(y(value), y(0))
                tip = tag("title", f"{svg.clip(name, 80)} {series}: {number(value)}")
                rect = {"x": left + 0.5, "y": top, "width": width - 1, "height": abs(y(value) - y(0))}
                body.append(tag("rect", tip, **rect, class_=f"f h{j} s{j}"))
    return body + _reference(plot, box, y, y), svg.HEIGHT


def _lying(plot: Plot, table: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> tuple[list[Markup], float]:
    left = 24 + 6.4 * min(max(map(cell_len, order)), 22)
    thick = max(5.0, min(16.0, 15.0 / len(table) + 1))
    row = thick * len(table) + (8 if len(order) <= 25 else 5)
    row = max(row, 15.0)
    box = Box(left=left, right=svg.WIDTH - 44, bottom=12 + row * len(order))
    values = _bar_values(plot, table, order)
    x, write = Scale.of(values, box.left, box.right, zero=True, count=4), brief(values)
    body = [*svg.x_axis(box, x.ticks(), plot.y, grid=True)]
    for k, name in enumerate(order):
        middle = box.top + row * (k + 0.5)
        body.append(label(box.left - 7, middle + 4, name, anchor="end", length=22))
        for j, (series, column) in enumerate(table.items()):
            value = column.get(name, np.nan)
            if np.isfinite(value):
                top = middle + (j - len(table) / 2) * thick
                tip = tag("title", f"{svg.clip(name, 80)} {series}: {number(value)}")
                rect = {"x": min(x(value), x(0)), "y": top, "width": abs(x(value) - x(0)), "height": thick - 1}
                body.append(tag("rect", tip, **rect, class_=f"f h{j} s{j}"))
                if len(table) == 1:
                    end = max(x(value), x(0)) + 4
                    body.append(label(end, middle + 4, write(value), anchor="start", class_="t n"))
    if isinstance(plot.reference, (int, float)):
        at = x(float(plot.reference))
        body.append(tag("line", x1=at, x2=at, y1=box.top, y2=box.bottom, class_="r"))
    return body, box.bottom + 46


def blocks(z: np.ndarray, limit: int) -> np.ndarray:
    """``z`` (r, c) averaged over even blocks until neither side is longer than ``limit``; NaN is left out."""
    for axis in (0, 1):
        n = z.shape[axis]
        if n > limit:
            starts = np.linspace(0, n, limit + 1).astype(int)[:-1]
            sums = np.add.reduceat(np.nan_to_num(z), starts, axis)
            counts = np.add.reduceat(np.isfinite(z).astype(float), starts, axis)
            z = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return z


def heatmap(plot: Plot, names: Names) -> Chart:
    """A grid of cells, darker for larger; negative values in a second hue. Small grids show their numbers."""
    s = next(iter(plot.series.values()), {})
    whole = np.atleast_2d(np.asarray(s.get("z", []), dtype=float))
    whole = np.where(np.isfinite(whole), whole, np.nan)
    if not np.isfinite(whole).any():
        return empty(plot)
    z = blocks(whole, CELLS)
    rows, columns = z.shape
    note = f"{whole.shape[0]:,} × {whole.shape[1]:,} cells, averaged in blocks." if z.shape != whole.shape else ""
    x_names = _spread(s.get("x"), whole.shape[1], columns)
    y_names = _spread(s.get("y"), whole.shape[0], rows)
    left = 24 + 6.4 * min(max(map(cell_len, y_names), default=1), 14) + (14 if plot.y else 0)
    cell = min((svg.WIDTH - 12 - left) / columns, 34.0)
    high = min(cell, max(360 / rows, 6.0))
    box = Box(left=left, right=left + cell * columns, bottom=12 + high * rows)
    top = float(np.nanmax(np.abs(z))) or 1.0
    few, write = max(rows, columns) <= 12 and cell >= 24, brief(z)
    body = [
        part
        for i in range(rows)
        for j in range(columns)
        if np.isfinite(z[i, j])
        for part in _cell(box, (i, j), (cell, high), float(z[i, j]), top, write(z[i, j]) if few else "")
    ]
    body += _cell_names(box, x_names, y_names, cell, high)
    if plot.x:
        body.append(label((box.left + box.right) / 2, box.bottom + 36, plot.x, class_="t a"))
    if plot.y:
        at = f"translate(13 {(box.top + box.bottom) / 2:.5g}) rotate(-90)"
        body.append(tag("text", svg.fitted(plot.y, 42), transform=at, text_anchor="middle", class_="t a"))
    span = f"from {write(np.nanmin(z))} to {write(np.nanmax(z))}"
    what = f"Heat map of {whole.shape[0]} rows and {whole.shape[1]} columns, values {span}."
    drawn = svg.figure(names, plot.title, what, body, box.bottom + (46 if plot.x else 26))
    return Chart(plot.title, drawn, (), f"{note} Cells range {span}; a stronger tint is a larger size.".strip())


def _spread(given: Any, n: int, cells: int) -> list[str]:
    """One name a cell; a block takes the name of its first row."""
    full = [str(v) for v in given] if given is not None else [str(k) for k in range(n)]
    full += [""] * (n - len(full))
    return [full[int(k)] for k in np.linspace(0, n, cells + 1).astype(int)[:-1]]


def _cell(
    box: Box, at: tuple[int, int], size: tuple[float, float], value: float, top: float, text: str
) -> list[Markup]:
    x, y = box.left + at[1] * size[0], box.top + at[0] * size[1]
    strength, width, height = round(abs(value) / top, 2), round(size[0] - 1, 2), round(size[1] - 1, 2)
    kind = "z neg" if value < 0 else "z"
    parts = [tag("rect", x=x, y=y, width=width, height=height, fill_opacity=max(strength, 0.05), class_=kind)]
    if text and value != 0:
        parts.append(label(x + size[0] / 2, y + size[1] / 2 + 4, text, class_="t n on" if strength > 0.65 else "t n a"))
    return parts


def _cell_names(box: Box, x_names: list[str], y_names: list[str], cell: float, high: float) -> list[Markup]:
    every_y = max(1, int(np.ceil(13 / high)))
    widest = max((cell_len(svg.fitted(n, 8)) for n in x_names), default=1)
    every_x = max(1, int(np.ceil((widest * 6.8 + 4) / cell)))
    left = [
        label(box.left - 6, box.top + high * (k + 0.5) + 4, n, anchor="end", length=14)
        for k, n in enumerate(y_names)
        if k % every_y == 0
    ]
    below = [
        label(box.left + cell * (k + 0.5), box.bottom + 16, n, length=8)
        for k, n in enumerate(x_names)
        if k % every_x == 0
    ]
    return left + below


def images(plot: Plot, names: Names) -> Chart:
    """Pictures as PNG data, with captions."""
    s = next(iter(plot.series.values()), {})
    pictures = list(s.get("images", ()))
    if not pictures:
        return empty(plot)
    captions = [*map(str, s.get("captions", ())), *[""] * len(pictures)]
    items = []
    for picture, caption in zip(pictures[:IMAGES], captions, strict=False):
        short = svg.clip(caption, 60)
        image = f'<img src="{png(np.asarray(picture, dtype=float))}" alt="{Markup.escape(short or plot.title)}">'
        items.append(tag("li", Markup(image), tag("span", short)))
    note = f"Shows {IMAGES} of {len(pictures)} images." if len(pictures) > IMAGES else ""
    return Chart(plot.title, tag("ul", *items, class_="images"), (), note, wide=True)


def png(picture: np.ndarray) -> str:
    """A data URI of an (h, w), (h, w, 1) or (h, w, 3) array in 0..255, at most SIDE pixels a side."""
    array = np.clip(np.nan_to_num(picture, nan=0.0, posinf=255, neginf=0), 0, 255).round().astype(np.uint8)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    image = Image.fromarray(array)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
