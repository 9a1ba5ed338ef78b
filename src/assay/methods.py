"""Finding methods by the name ``room.Method[:option=value,..]``, and the catalogue of all of them."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from assay.runtime.errors import InputError, unknown
from assay.runtime.method import KINDS, configure

CATALOGUE = Path(__file__).with_name("catalogue.json")


def rooms() -> list[str]:
    """Packages of assay that export methods."""
    import assay

    return sorted(m.name for m in pkgutil.iter_modules(assay.__path__) if m.ispkg and _exports(m.name))


def _exports(room: str) -> dict[str, type]:
    module = importlib.import_module(f"assay.{room}")
    named = {n: getattr(module, n) for n in getattr(module, "__all__", ())}
    return {
        n: c
        for n, c in named.items()
        if inspect.isclass(c) and getattr(c, "kind", None) in KINDS and not _is_contract(c)
    }


def _is_contract(cls: type) -> bool:
    """A base class states a kind and is no method: it is marked so in its own body."""
    return bool(cls.__dict__.get("contract", False)) or inspect.isabstract(cls)


def exported(kind: str | None = None) -> dict[str, type]:
    """Every public method class by ``room.Name``, those of third parties (entry point ``assay.methods``) included."""
    found = {f"{room}.{n}": c for room in rooms() for n, c in _exports(room).items()}
    for point in entry_points(group="assay.methods"):
        found[point.name] = point.load()
    return {n: c for n, c in found.items() if kind is None or getattr(c, "kind", None) == kind}


def from_text(text: str) -> Any:
    """The method that ``room.Method[:option=value,..]`` describes."""
    name, _, options = text.partition(":")
    room, _, cls_name = name.rpartition(".")
    classes = _exports(room) if room in rooms() else {}
    if cls_name not in classes:
        raise _unknown(name, classes)
    given = {}
    for part in filter(None, options.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"method {text!r}: option {part!r}; expected key=value")
        given[key.strip()] = value.strip()
    return configure(classes[cls_name], given)


def _unknown(name: str, classes: dict[str, type]) -> InputError:
    """The error for a name that no method has; ``classes`` are those of its room, if there is such a room."""
    room, dot, cls_name = name.rpartition(".")
    elsewhere = [n for n in exported() if n.partition(".")[2].lower() == cls_name.lower()]
    if elsewhere:
        return InputError(f"unknown method {name!r}; did you mean {elsewhere[0]!r}?")
    if not dot:
        return InputError(f"unknown method {name!r}; expected ROOM.METHOD[:k=v,..] (`assay methods` lists all)")
    return unknown(f"method of {room}", cls_name, classes) if classes else unknown("room", room, rooms())


def catalogue() -> dict[str, Any]:
    """The catalogue as it follows from the sources; ``catalogue.json`` is this, committed."""
    rows = []
    for name, cls in sorted(exported().items()):
        if not cls.__module__.startswith("assay."):
            continue
        doc, kind = inspect.getdoc(cls) or "", getattr(cls, "kind", "")
        claim = doc.split("\n\n")[0].replace("\n", " ")
        repairs = hasattr(cls, "repair") or kind == "unlearner"
        row = {"name": name, "kind": kind, "room": name.partition(".")[0], "claim": claim, "repairs": repairs}
        access = {"access": cls.access.name} if hasattr(cls, "access") else {}
        rows.append(row | access | ({"guarantee": cls.guarantee} if hasattr(cls, "guarantee") else {}))
    papers = importlib.import_module("assay.papers.catalogue").rows()  # by name: papers are a layer above
    return {"schema": "assay/1", "kind": "catalogue", "methods": rows, "papers": papers}


if __name__ == "__main__":
    CATALOGUE.write_text(json.dumps(catalogue(), indent=1) + "\n", encoding="utf-8")
