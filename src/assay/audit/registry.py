"""The properties, in the order of the report. Third parties add theirs by the entry point ``assay.properties``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points

from assay.audit.property import Profile, Property
from assay.runtime.errors import unknown

MODULES = (
    "accuracy",
    "subgroups",
    "calibration",
    "uncertainty",
    "robustness",
    "decision",
    "corruption",
    "certified",
    "ood",
    "adversarial_detection",
    "backdoor",
    "privacy",
    "labels",
    "hygiene",
    "geometry",
    "sharpness",
    "explanation",
    "compression",
    "cost",
)


@functools.cache
def properties() -> dict[str, Property]:
    """Every property by name."""
    modules = [importlib.import_module(f"assay.audit.{name}") for name in MODULES]
    found = [p for m in modules for p in getattr(m, "PROPERTIES", None) or (m.PROPERTY,)]
    found += [point.load() for point in entry_points(group="assay.properties")]
    return {p.name: p for p in found}


def select(profile: Profile, only: Iterable[str] | None) -> list[Property]:
    """The properties of a profile, or those named (a prefix such as "robustness" names all below it)."""
    known = properties()
    if not only:
        return [p for p in known.values() if profile in p.profiles]
    chosen = []
    for name in only:
        matches = [p for n, p in known.items() if n == name or n.startswith(f"{name}.")]
        if not matches:
            raise unknown("property", name, known)
        chosen += matches
    return [p for p in known.values() if p in chosen]
