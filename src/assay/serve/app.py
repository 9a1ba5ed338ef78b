"""The routes: all of them answer GET, none changes anything, and nothing is fetched from elsewhere."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from assay.gates.evidence import Measured, Number, change
from assay.report import svg, text
from assay.runtime.errors import InputError
from assay.serve.plots import over_runs
from assay.serve.runs import Run, find, inside

POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A report brings its style with it, and is somebody's file: it may show pictures that it holds, and nothing else.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
FILES = {"report.html": "text/html; charset=utf-8", "report.json": "application/json"}
PLOTTED = 100

_here = Path(__file__).parent
_environment = Environment(
    loader=FileSystemLoader(_here / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals.update(number=text.number, interval=text.interval, BETTER=text.BETTER)
_environment.filters.update(clip=svg.clip, query=lambda value: quote(str(value), safe="", errors="replace"))


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a metric of two runs, and its change."""

    name: str
    a: Measured
    b: Measured
    change: Number

    @property
    def verdict(self) -> str:
        """'better', 'worse', 'changed' or '': a change whose interval does not hold 0."""
        low, high = self.change.low, self.change.high
        if low is None or high is None or low <= 0 <= high:
            return ""
        if self.b.better is None:
            return "changed"
        return "better" if (low > 0) == (self.b.better == "higher") else "worse"


def create(root: Path, host: str = "127.0.0.1") -> FastAPI:
    """The application over the runs below ``root``; ``host`` is the name that it is reached by, besides addresses."""
    app = FastAPI(title="assay", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard(host))

    @app.exception_handler(404)
    async def absent(request: Request, error: Exception) -> Response:
        return _missing("There is no such page.")

    @app.get("/")
    def index() -> Response:
        runs = find(root)
        good = [r for r in runs if r.evidence is not None]
        broken = [r for r in runs if r.evidence is None]
        names = sorted({m for r in good if r.evidence for m in r.evidence.metrics})
        return _page("index", title="Runs", root=str(root), runs=good, broken=broken, metrics=names)

    @app.get("/compare")
    def compare(a: str = "", b: str = "") -> Response:
        runs = {r.key: r for r in find(root)}
        if a not in runs or b not in runs:
            return _missing("There is no such run.")
        return _compare(runs[a], runs[b])

    @app.get("/metric")
    def metric(name: str = "") -> Response:
        rows = [(r, r.evidence.metrics[name]) for r in find(root) if r.evidence and name in r.evidence.metrics]
        if not rows:
            return _missing("No run has this metric.")
        drawn = [(r.name, m) for r, m in rows if m.value is not None]
        chart = over_runs(name, drawn[:PLOTTED]) if drawn else ""
        return _page("metric", title=name, name=name, rows=rows, chart=chart, hidden=max(len(drawn) - PLOTTED, 0))

    @app.get("/runs/{key}/{file}")
    def recorded(key: str, file: str) -> Response:
        run = next((r for r in find(root) if r.key == key), None)
        if run is None or file not in FILES:
            return _missing("There is no such report.")
        try:
            content = inside(root, run.folder / file).read_bytes()
        except (InputError, OSError):
            return _missing(f"This run has no readable {file}.")
        return Response(content, media_type=FILES[file], headers={"Content-Security-Policy": REPORT_POLICY})

    @app.get("/style.css")
    def style() -> Response:
        sheets = [_here.parent / "report/templates/report.css", _here / "templates/serve.css"]
        return Response("\n".join(s.read_text(encoding="utf-8") for s in sheets), media_type="text/css")

    return app


def _guard(host: str) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Middleware: other host names are refused, and every answer says that a browser is to run nothing."""

    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if not allowed(request.headers.get("host", ""), host):
            response: Response = _page("message", 400, title="Unknown host", message="This page has another address.")
        else:
            response = await call_next(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response

    return guard


def allowed(header: str, host: str) -> bool:
    """Whether a Host header names this server: an address, localhost or ``host``.

    Another site whose name is made to resolve to this machine (DNS rebinding) sends its own name.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    name = name.strip("[]").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", host.lower())
    return True


def _compare(a: Run, b: Run) -> Response:
    if a.evidence is None or b.evidence is None:
        return _missing("One of the two runs cannot be read.")
    ours, theirs = a.evidence.metrics, b.evidence.metrics
    rows = [Row(n, m, theirs[n], change(m, theirs[n])) for n, m in ours.items() if n in theirs]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(b.evidence.parts[row.b.section].title, []).append(row)
    same = a.evidence.test_data is not None and a.evidence.test_data == b.evidence.test_data
    alone = len(ours) + len(theirs) - 2 * len(rows)
    title = f"{a.name} and {b.name}"
    return _page("compare", title=title, a=a, b=b, groups=groups, same=same, alone=alone, VERDICT=text.VERDICT)


def _page(template: str, status: int = 200, /, **values: Any) -> Response:
    content = _environment.get_template(f"{template}.html.j2").render(**values)
    return Response(content.encode("utf-8", "replace"), status, media_type="text/html; charset=utf-8")


def _missing(message: str) -> Response:
    return _page("message", 404, title="Not found", message=message)
