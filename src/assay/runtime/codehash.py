"""The hash of the code that a task runs: its module and what that imports inside assay, without comments and layout.

A name that a package's ``__init__`` only passes on is followed to the file that defines it: a method that joins a room
changes nothing for what does not import it. The hash is the same on every machine and version of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = "assay"
ROOT = Path(__file__).parents[1]


def source_path(module: str) -> Path | None:
    """The file of a module of assay; None where there is none of that name."""
    first, *rest = module.split(".")
    if first != PACKAGE:
        return None
    base = ROOT.joinpath(*rest)
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if rest and p.is_file()), None)


@functools.cache
def _tree(module: str) -> ast.Module:
    path = source_path(module)
    if path is None:
        raise ModuleNotFoundError(module)
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _reexports(package: str) -> dict[str, tuple[str, str]]:
    """Names that the ``__init__`` of a package binds by an import: where each comes from."""
    path = source_path(package)
    if path is None or path.name != "__init__.py":
        return {}
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in _tree(package).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def _defined_in(module: str, name: str) -> str | None:
    """The module whose code ``from module import name`` needs; None outside assay."""
    if source_path(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    if name in _reexports(module):
        return _defined_in(*_reexports(module)[name])
    return module if source_path(module) is not None else None


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if source_path(a.name) is not None)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = (_defined_in(node.module, a.name) for a in node.names)
            yield from (name for name in found if name is not None)


@functools.cache
def closure(module: str) -> tuple[str, ...]:
    """All modules of assay that ``module`` imports, itself included, in name order."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += sorted(set(_imports(name)) - seen)
    return tuple(sorted(seen))


def statements(module: str) -> list[ast.stmt]:
    """The top-level statements of a module without docstrings."""
    return _bare(_tree(module)).body


def _bare(tree: ast.Module) -> ast.Module:
    for inner in ast.walk(tree):
        body = getattr(inner, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            inner.body = body[1:]  # type: ignore[attr-defined, index]
    return tree


def form(node: Any) -> Any:
    """A syntax tree as nested lists, without positions and without fields that some versions of Python leave empty."""
    if isinstance(node, list):
        return [form(n) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [(k, form(v)) for k, v in ast.iter_fields(node) if v not in (None, []) and k != "kind"]
    return [type(node).__name__, *sorted(parts, key=lambda p: p[0])]


@functools.cache
def digest(module: str) -> str:
    """Hash of one module's code."""
    return hashlib.sha256(repr(form(statements(module))).encode()).hexdigest()


@functools.cache
def source_hash(module: str) -> str:
    """Hash of the module and of what it imports inside assay; comments, docstrings and layout do not count."""
    return hashlib.sha256("".join(f"{name} {digest(name)}\n" for name in closure(module)).encode()).hexdigest()


@functools.cache
def code_hash(module: str) -> str:
    """``source_hash`` with the versions of torch and numpy: what a stored result depends on."""
    return hashlib.sha256(
        f"{source_hash(module)} torch {version('torch')} numpy {version('numpy')}".encode()
    ).hexdigest()
