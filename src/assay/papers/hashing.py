"""The hash of a paper's experiment and claims: with the sizes of a scale it gives the base seed of recorded runs."""

from __future__ import annotations

import ast
import hashlib

from assay.runtime.codehash import form, statements


def claims_hash(module: str) -> str:
    """Hash of the module's experiment and claims: all of its code but the description PAPER and the figure."""
    kept = [node for node in statements(module) if not _descriptive(node)]
    return hashlib.sha256(repr(form(kept)).encode()).hexdigest()


def _descriptive(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "figure"
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets)
