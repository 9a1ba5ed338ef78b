"""Which factories a saved subject may name: what only builds models, recipes and configurations."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import is_dataclass
from typing import Any

from torch import nn

from assay.runtime.errors import InputError
from assay.runtime.spec import resolve


def admit(plain: Any, trust: Collection[str] = ()) -> None:
    """InputError unless every factory in the plain form of a spec is harmless or of a module that ``trust`` names.

    Harmless are torch modules and dataclasses that assay defines, functions of ``assay.nets``, and the models and
    configurations of transformers; not whatever else their modules hold or import, such as ``os.system``.
    """
    if isinstance(plain, dict):
        if "factory" in plain:
            _admit(plain["factory"], trust)
        plain = list(plain.values())
    if isinstance(plain, list):
        for value in plain:
            admit(value, trust)


def _admit(factory: Any, trust: Collection[str]) -> None:
    if not isinstance(factory, str):
        raise InputError(f"factory {factory!r}: expected 'module:name'")
    found, named = resolve(factory, trust), factory.partition(":")[0]
    if any(named == t or named.startswith(t + ".") for t in trust):
        return
    home = getattr(found, "__module__", None) or ""
    room = home.partition(".")[0]
    if inspect.isclass(found):
        parents = {c.__name__.lower() for c in found.__mro__}  # transformers 5 spells it PreTrainedConfig
        plain = is_dataclass(found) if room == "assay" else "pretrainedconfig" in parents
        fine = plain or issubclass(found, nn.Module)
        if fine and room in ("assay", "transformers"):
            return
    elif inspect.isfunction(found) and home.startswith("assay.nets"):
        return
    raise InputError(f"factory {factory!r}: builds no model and no recipe; expected a network, a trainer or a config")
