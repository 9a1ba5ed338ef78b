"""The hash of the code that a task runs: its module and everything inside assay that it imports, without comments."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path


@functools.cache
def _tree(module: str) -> tuple[ast.Module, bool] | None:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return None
    return ast.parse(Path(found.origin).read_text()), found.submodule_search_locations is not None


def _imports(module: str) -> set[str]:
    parsed = _tree(module)
    if parsed is None:
        return set()
    names: set[str] = set()
    for node in ast.walk(parsed[0]):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return {n for n in names if n.startswith("assay.") and _exists(n)}


@functools.cache
def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a name imported from a module, not a module itself
        return False


def closure(module: str) -> list[str]:
    """All modules of assay that ``module`` imports, itself included, in name order."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += sorted(_imports(name) - seen)
    return sorted(seen)


class _Strip(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]  # type: ignore[attr-defined]
        return node


@functools.cache
def _text(module: str) -> str:
    parsed = _tree(module)
    return "" if parsed is None else ast.dump(_Strip().visit(ast.parse(ast.unparse(parsed[0]))))


@functools.cache
def code_hash(module: str) -> str:
    """Hash of the closure's sources, comments and docstrings stripped, with the versions of torch and numpy."""
    from importlib.metadata import version

    h = hashlib.sha256(f"torch {version('torch')} numpy {version('numpy')}".encode())
    for name in closure(module):
        h.update(f"\n{name}\n{_text(name)}".encode())
    return h.hexdigest()
