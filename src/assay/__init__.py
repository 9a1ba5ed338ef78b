"""assay puts a trained model to the proof: audit, repair, and what each repair did to every other property."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "plan": "assay.audit",
    "compare": "assay.report",
    "load": "assay.subject",
    "from_callable": "assay.subject",
    "Subject": "assay.subject",
    "Access": "assay.subject",
    "Oracle": "assay.subject",
    "Data": "assay.data",
    "load_data": "assay.data.files:open_data",
    "AssayError": "assay.runtime.errors",
    "InputError": "assay.runtime.errors",
    "AccessError": "assay.runtime.errors",
}
_MODULES = (
    "attacks",
    "audit",
    "calibrate",
    "certify",
    "compress",
    "curate",
    "decide",
    "defenses",
    "detect",
    "dynamics",
    "explain",
    "generate",
    "labels",
    "language",
    "nets",
    "privacy",
    "recommend",
    "repair",
    "represent",
    "science",
    "training",
    "unlearn",
    "vision",
)

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        module, _, own = _NAMES[name].partition(":")
        return getattr(importlib.import_module(module), own or name)
    if name in _MODULES:
        return importlib.import_module(f"assay.{name}")
    raise AttributeError(f"module 'assay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
