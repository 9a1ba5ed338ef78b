"""Hashes of a paper's code that are the same on every machine and Python: of its whole closure, and of its claims."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from assay.runtime.codehash import closure


def source_path(module: str) -> Path:
    """The file of a module of assay."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(module)
    return Path(found.origin)


def _form(node: Any) -> Any:
    """The tree without positions, docstrings, and fields that some versions of Python leave empty."""
    if isinstance(node, list):
        return [_form(n) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [(k, _form(v)) for k, v in ast.iter_fields(node) if v not in (None, []) and k != "kind"]
    return [type(node).__name__, *sorted(parts, key=lambda p: p[0])]


def _bare(node: ast.AST) -> ast.AST:
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            inner.body = body[1:]  # type: ignore[attr-defined, index]
    return node


def _tree(module: str) -> ast.Module:
    return ast.parse(source_path(module).read_text(encoding="utf-8"))


def source_hash(module: str) -> str:
    """Hash of the module and of everything inside assay that it imports; comments, docstrings, layout do not count."""
    h = hashlib.sha256()
    for name in closure(module):
        h.update(f"{name} {_form(_bare(_tree(name)))!r}\n".encode())
    return h.hexdigest()


def claims_hash(module: str) -> str:
    """Hash of the module's experiment and claims: all of its code but the description PAPER and the figure."""
    tree = _bare(_tree(module))
    kept = [n for n in tree.body if not _descriptive(n)]  # type: ignore[attr-defined]
    return hashlib.sha256(repr(_form(kept)).encode()).hexdigest()


def _descriptive(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "figure"
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets)
