"""The page of one reproduction: a self-contained HTML file."""

from __future__ import annotations

import io
import json
import os
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assay.papers import catalogue
from assay.papers.model import Claim
from assay.papers.runner import Run
from assay.runtime.errors import InputError

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def number(claim: Claim) -> str:
    """What was observed: the mean, and the interval or range that the rule judges."""
    low, high = claim.interval
    value = float(claim.observed.mean())
    if claim.rule == "exact" and claim.at_most is None:
        return f"{low:.4g}"
    if claim.rule == "exact" and claim.at_least is None:
        return f"{high:.4g}"
    return f"{value:.4g} [{low:.4g}, {high:.4g}]" if low == low else f"{value:.4g}"


def bound(claim: Claim) -> str:
    """The bound in signs."""
    ends = [f"≥ {claim.at_least:g}"] if claim.at_least is not None else []
    ends += [f"≤ {claim.at_most:g}"] if claim.at_most is not None else []
    return " and ".join(ends)


_environment.globals.update(number=number, bound=bound)


def svg(run: Run) -> str:
    """The paper's figure, redrawn from this run's numbers, as one SVG element."""
    drawing = catalogue.load(run.paper.slug).figure(run.real.table)
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": run.paper.slug, "svg.fonttype": "none"}):
        drawing.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def page(run: Run) -> str:
    """The page's text."""
    css = files("assay").joinpath("report/templates/report.css").read_text(encoding="utf-8")
    return _environment.get_template("paper.html.j2").render(
        run=run, paper=run.paper, css=Markup(css), figure=Markup(svg(run))
    )


def save(run: Run, folder: Path) -> Path:
    """Write ``<slug>.html`` and ``<slug>.json`` into ``folder``; returns the path of the page."""
    path = folder / f"{run.paper.slug}.html"
    document = {"schema": "assay/1", "kind": "reproduction", **run.to_dict(), "table": list(run.real.table.rows)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, text in ((path, page(run)), (path.with_suffix(".json"), json.dumps(document, indent=1) + "\n")):
            part = target.with_name(f".{target.name}.part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, target)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; expected a folder that can be written") from error
    return path
