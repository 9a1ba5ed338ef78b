"""How an object is rebuilt without pickle: the dotted name of its factory and plain options, nested where needed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch

from assay.runtime.errors import InputError, unknown

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Spec:
    """``factory`` is "module:name"; ``options`` its keyword arguments (numbers, strings, lists, or other Specs)."""

    factory: str
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain, TOML-ready form; options that are None are left out (the factory's default is None there)."""
        return {
            "factory": self.factory,
            "options": {k: _plain(v) for k, v in self.options.items() if v is not None},
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def rebuildable(cls: T) -> T:
    """Class decorator: instances remember as ``spec`` how they were made, so that a subject can be saved."""
    original: Any = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls:
            names = original.__code__.co_varnames[1 : len(args) + 1]
            given = {**dict(zip(names, args, strict=True)), **kwargs}
            specs = {k: spec_of(v) if isinstance(v, torch.nn.Module) else spec_of(v) or v for k, v in given.items()}
            unknown_part = any(v is not None and specs[k] is None for k, v in given.items())
            vars(self)["spec"] = None if unknown_part else Spec(f"{cls.__module__}:{cls.__qualname__}", specs)

    cls.__init__ = init  # type: ignore[misc]
    return cls


def spec_of(obj: object) -> Spec | None:
    """How ``obj`` is rebuilt: its own ``spec``, or a dataclass's fields; None where neither is known."""
    known: object = getattr(obj, "spec", None)
    if isinstance(known, Spec):
        return known
    if is_dataclass(obj) and not isinstance(obj, type) and type(obj).__module__.startswith("assay."):
        options = {f.name: getattr(obj, f.name) for f in fields(obj) if f.init}
        return Spec(
            f"{type(obj).__module__}:{type(obj).__qualname__}", {k: spec_of(v) or v for k, v in options.items()}
        )
    return None


def trusted(factory: str, trust: Collection[str] = ()) -> bool:
    """assay's own modules and transformers are trusted; anything else only when named."""
    module = factory.partition(":")[0]
    return any(module == t or module.startswith(t + ".") for t in ("assay", "transformers", *trust))


def resolve(factory: str, trust: Collection[str] = ()) -> Callable[..., Any]:
    """The callable behind "module:name"."""
    module, _, name = factory.partition(":")
    if not name:
        raise InputError(f"factory {factory!r}: expected 'module:name'")
    if not trusted(factory, trust):
        raise InputError(f"factory {factory!r} is not trusted: pass --trust {module} (trust={module!r}) to import it")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"factory {factory!r}: cannot import {module!r} ({error})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise unknown(f"name in {module}:", part, [n for n in dir(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found


def build(plain: dict[str, Any], trust: Collection[str] = ()) -> Any:
    """The object a plain spec describes."""
    factory = resolve(plain["factory"], trust)
    options = {k: _build_value(v, trust) for k, v in plain.get("options", {}).items()}
    try:
        return factory(**options)
    except TypeError as error:
        raise InputError(f"factory {plain['factory']!r} does not take these options: {error}") from error


def _build_value(value: Any, trust: Collection[str]) -> Any:
    if isinstance(value, dict) and "factory" in value:
        return build(value, trust)
    if isinstance(value, list):
        return tuple(_build_value(v, trust) for v in value)
    return value
