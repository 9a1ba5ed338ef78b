"""The hash of the code that a task runs: the definitions of assay that it reaches, without comments and layout.

From the names that a definition uses, each is followed to the statement that binds it, through imports and through the
``__init__`` of a package, and so on: a function that joins a module, or a method a room, changes nothing for what does
not use it. Of a module that is reached the statements that bind no name (registrations, checks) always count. What is
found only by a string at run time is not followed. The hash is the same on every machine and version of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

Definition = tuple[str, str]  # a module, and a name that it binds
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
def _bindings(module: str) -> dict[str, list[ast.stmt]]:
    """The top-level statements that bind each name; those that bind none under ""."""
    found: dict[str, list[ast.stmt]] = {"": []}
    for node in statements(module):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            for name in _bound(node) or [""]:
                found.setdefault(name, []).append(node)
    return found


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [n.id for n in names if isinstance(n, ast.Name)] if all(isinstance(n, ast.Name) for n in names) else []


@functools.cache
def _imported(module: str) -> dict[str, set[Definition]]:
    """What the names that a module imports stand for; a module of assay is (module, "*").

    ``import assay.x`` binds ``assay``: whatever is read of that is taken for the whole module, (module, "**").
    """
    found: dict[str, set[Definition]] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            for a in node.names:
                if source_path(a.name) is not None:
                    name = (a.asname, "*") if a.asname else (a.name.split(".")[0], "**")
                    found.setdefault(name[0], set()).add((a.name, name[1]))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names:
                found.setdefault(a.asname or a.name, set()).update(_attribute(node.module, a.name))
    return found


def _attribute(module: str, name: str) -> set[Definition]:
    """What ``module.name`` stands for: a definition, or a whole module."""
    if source_path(f"{module}.{name}") is not None:
        return {(f"{module}.{name}", "*")}
    if name in _reexports(module):
        return _attribute(*_reexports(module)[name])
    return {(module, name)} if source_path(module) is not None else set()


def _uses(module: str, node: ast.AST) -> Iterator[Definition]:
    """The definitions of assay that the names in a statement stand for."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        for found, name in _imported(module).get(node.value.id, ()):
            yield from _attribute(found, node.attr) if name == "*" else [(found, name)]
        if node.value.id in _bindings(module):
            yield module, node.value.id
        return
    if isinstance(node, ast.Name):
        yield from _imported(module).get(node.id, ())
        if node.id in _bindings(module):
            yield module, node.id
    for inner in ast.iter_child_nodes(node):
        yield from _uses(module, inner)


@functools.cache
def reached(module: str, roots: tuple[str, ...] = ("*",)) -> tuple[Definition, ...]:
    """All definitions that ``roots`` of a module reach, in order; "*" stands for all names of a module."""
    if source_path(module) is None:
        raise ModuleNotFoundError(module)
    seen: set[Definition] = set()
    todo: list[Definition] = [(module, name) for name in roots]
    while todo:
        found, name = todo.pop()
        if name in ("*", "**"):
            todo += [(found, n) for n in _bindings(found)]
        elif (found, name) not in seen:
            seen.add((found, name))
            todo.append((found, ""))
            todo += _imported(found).get(name, ())  # a name that a module only passes on
            todo += [use for node in _bindings(found).get(name, []) for use in _uses(found, node)]
    return tuple(sorted(seen))


@functools.cache
def source_hash(module: str, roots: tuple[str, ...] = ("*",)) -> str:
    """Hash of the definitions that ``roots`` of a module reach; comments, docstrings and layout do not count."""
    code = [[m, name, form(_bindings(m).get(name, []))] for m, name in reached(module, roots)]
    return hashlib.sha256(repr(code).encode()).hexdigest()


@functools.cache
def code_hash(module: str) -> str:
    """``source_hash`` with the versions of torch and numpy: what a stored result depends on."""
    return hashlib.sha256(
        f"{source_hash(module)} torch {version('torch')} numpy {version('numpy')}".encode()
    ).hexdigest()
