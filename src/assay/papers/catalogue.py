"""Finding the papers: the modules that are written, and the rows of the catalogue for all of them."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from assay.papers.hashing import run_hash
from assay.papers.model import check_module
from assay.runtime.errors import InputError, unknown

MACHINERY = {"catalogue", "confirm", "hashing", "ledger", "model", "page", "runner", "status"}
PLANNED = Path(__file__).with_name("planned.json")


def written() -> list[str]:
    """The slugs of the papers that have a module."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(m.name.replace("_", "-") for m in found if m.name not in MACHINERY)


def planned() -> list[dict[str, Any]]:
    """slug, title, room, also and kind of every paper that assay means to hold."""
    return json.loads(PLANNED.read_text(encoding="utf-8"))


def load(slug: str) -> ModuleType:
    """The module of a paper, checked. InputError where the paper is unknown or only planned."""
    known = written()
    if slug not in known:
        if slug in {p["slug"] for p in planned()}:
            raise InputError(f"paper {slug!r} is planned; expected one that is written ({', '.join(known)})")
        raise unknown("paper", slug, known)
    module = importlib.import_module(f"assay.papers.{slug.replace('-', '_')}")
    check_module(module)
    return module


def rows() -> list[dict[str, Any]]:
    """The papers of ``catalogue.json``: all that are planned, and more of those that are written."""
    empty: dict[str, Any] = {
        "authors": "",
        "year": None,
        "arxiv": "",
        "claim": "",
        "headline": "",
        "needs_gpu": None,
        "sources": {},
    }
    found = {p["slug"]: {**p, **empty, "implements": [], "shams": {}, "written": False} for p in planned()}
    for slug in written():
        module = load(slug)
        paper = check_module(module)
        if paper.slug != slug:
            raise InputError(f"{module.__name__}: slug {paper.slug!r}; expected {slug!r}, the name of the module")
        plain = ("slug", "title", "authors", "year", "arxiv", "room", "kind", "claim", "headline")
        found[slug] = {k: getattr(paper, k) for k in plain} | {
            "also": list(paper.also),
            "implements": list(paper.implements),
            "shams": dict(paper.shams),
            "needs_gpu": vars(paper.needs_gpu) if paper.needs_gpu else None,
            "sources": {scale.name: run_hash(module.__name__, scale) for scale in paper.scales},
            "written": True,
        }
    return [found[slug] for slug in sorted(found)]
