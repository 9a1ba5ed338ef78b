"""Hash of the code that a model runs, and of the values which that code reads."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from assay.runtime.codehash import source_hash, source_path
from assay.subject.options import INNER

PLAIN = (type(None), bool, int, float, complex, str, bytes, types.EllipsisType, torch.dtype, torch.device)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
DEPTH = 100  # of values within values; below it a value counts by its type
INSTALLED = frozenset({"site-packages", "dist-packages"})


def running_code(model: nn.Module) -> str:
    """SHA-256 of the code that ``model`` runs, the same in every process.

    It covers the classes of all modules and their own bases (methods, properties, class attributes, default
    arguments), functions that are wrapped or closed over, hooks, and the global names that any of this code uses: the
    code of functions and classes, the content of values. Installed packages count by name and version, assay's own
    definitions by their source. What is imported inside a function is not followed.
    """
    walk = _Walk()
    walk.inner = {id(m) for m in model.modules()}
    walk.value(model)
    return walk.hash.hexdigest()


def _foreign(module: str | None) -> bool:
    """Whether a module is torch's, Python's or an installed package's."""
    top = (module or "").partition(".")[0]
    if top == "torch" or (top in sys.stdlib_module_names and top != "__main__"):
        return True
    found = sys.modules.get(module or "") or sys.modules.get(top)
    return not INSTALLED.isdisjoint(Path(getattr(found, "__file__", None) or "").parts) and top != "assay"


class _Walk:
    """Feeds a hash with everything that can be reached from a value, each object once."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # objects are kept, so that no other one gets their id
        self.read: set[tuple[str, str]] = set()
        self.inner: set[int] = set()  # modules whose weights count elsewhere
        self.depth = 0

    def say(self, *parts: object) -> None:
        self.hash.update(repr(parts).encode())

    def value(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Any object; of a Python module only the ``names`` that it has."""
        if isinstance(value, PLAIN):
            self.say(type(value).__name__, value)
        elif self.depth >= DEPTH or isinstance(value, types.ModuleType):
            self._module(value, names) if isinstance(value, types.ModuleType) else self.say(type(value).__qualname__)
        elif isinstance(value, torch.Tensor | np.ndarray | np.generic):
            self._array(value)
        elif id(value) in self.seen:
            self.say("again", self.seen[id(value)][0])
        else:
            if not isinstance(value, tuple):  # equal constants may be one object or several
                self.seen[id(value)] = (len(self.seen), value)
            self.say(type(value).__qualname__)
            self.depth += 1
            for part in self._parts(value):
                self.value(part, names)
            self.depth -= 1
            self.say("end")

    def _array(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self.say("tensor", str(value.dtype), tuple(value.shape))
            if value.device.type == "meta" or value.layout != torch.strided:
                return
            value = value.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()
        if value.dtype.hasobject:
            return self.value(value.tolist())
        self.say(str(value.dtype), value.shape)
        self.hash.update(np.ascontiguousarray(value).tobytes())

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> None:
        self.say("module", module.__name__)
        if _foreign(module.__name__):
            return self._version(module.__name__)
        for name in sorted(names & vars(module).keys()):
            if (module.__name__, name) not in self.read:
                self.read.add((module.__name__, name))
                self.say(name)
                self.value(vars(module)[name], names)

    def _version(self, module: str | None) -> None:
        top = (module or "").partition(".")[0]
        self.say(top, str(getattr(sys.modules.get(top), "__version__", "")))

    def _parts(self, value: Any) -> Iterator[Any]:
        """What an object is made of."""
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.CodeType):
            yield from (value.co_code, value.co_names, value.co_freevars, value.co_exceptiontable, value.co_consts)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, nn.Module):
            yield from self._layer(value)
        elif isinstance(value, property):
            yield from (value.fget, value.fset, value.fdel)
        elif isinstance(value, staticmethod | classmethod):
            yield value.__func__
        elif isinstance(value, functools.cached_property):
            yield value.func
        elif isinstance(value, types.CellType):
            yield getattr(value, "cell_contents", None)
        elif isinstance(value, Mapping):
            yield from (part for pair in list(value.items()) for part in pair)
        elif isinstance(value, AbstractSet):
            yield from sorted(map(self._digest, value))
        elif isinstance(value, list | tuple):
            yield from list(value)
        else:
            yield from self._instance(value)

    def _digest(self, value: Any) -> str:
        walk = _Walk()
        walk.seen, walk.read, walk.inner, walk.depth = dict(self.seen), set(self.read), self.inner, self.depth
        walk.value(value)
        return walk.hash.hexdigest()

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        module = str(function.__globals__.get("__name__"))
        yield function.__qualname__
        if _foreign(module):
            self._version(module)
            self.say(module, function.__code__.co_name)
        elif source_path(module) is not None:
            self._source(module, function.__code__.co_qualname)
        else:
            yield function.__code__
            names = frozenset(_names(function.__code__))
            for name in sorted(names & function.__globals__.keys()):
                self.say("global", name)
                self.depth += 1
                self.value(function.__globals__[name], names)
                self.depth -= 1
        yield from (function.__defaults__, function.__kwdefaults__, function.__closure__, function.__dict__)

    def _source(self, module: str, qualname: str) -> None:
        self.say(module, qualname, source_hash(module, (qualname.partition(".")[0],)))

    def _class(self, cls: type) -> Iterator[Any]:
        self.say(cls.__module__, cls.__qualname__)
        if _foreign(cls.__module__):
            self._version(cls.__module__)
            return
        if source_path(cls.__module__) is not None:
            self._source(cls.__module__, cls.__qualname__)
            return
        yield from (type(cls), cls.__bases__)
        for name, member in sorted(vars(cls).items()):
            code = isinstance(member, types.FunctionType | property | staticmethod | classmethod)
            if code or not (name.startswith("__") or name == "_abc_impl"):
                yield from (name, member)

    def _layer(self, layer: nn.Module) -> Iterator[Any]:
        yield type(layer)
        for name, value in sorted(vars(layer).items()):
            if name not in INNER:
                yield from (name, value)
        yield from (list(getattr(layer, name, {}).values()) for name in HOOKS)
        yield from (layer._buffers, {} if id(layer) in self.inner else layer._parameters, layer._modules)

    def _instance(self, value: Any) -> Iterator[Any]:
        """An object's class and what pickling it would write; of torch's and assay's own what they hold."""
        cls = type(value)
        yield cls
        if cls.__module__.partition(".")[0] in ("torch", "assay"):
            yield getattr(value, "__dict__", None) if cls.__module__.startswith("assay.") else None
            yield getattr(value, "__wrapped__", None)
            return
        try:
            reduced = value.__reduce_ex__(2)
        except Exception:  # whatever cannot be pickled, or a stranger's own code says
            yield getattr(value, "__dict__", None)
        else:
            parts = (reduced,) if isinstance(reduced, str) else reduced
            yield from (list(p) if isinstance(p, Iterator) else p for p in parts)
        yield getattr(value, "__wrapped__", None)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that code uses, that of functions inside included."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)
