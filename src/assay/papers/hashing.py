"""Hashes of parts of a paper's module: of what decides its base seed, and of what its tables depend on."""

from __future__ import annotations

import ast
import hashlib

from assay.runtime.codehash import closure, digest, form, statements


def claims_hash(module: str) -> str:
    """Hash of the module's experiment and claims: all of its code but the description PAPER and the figure."""
    return _hash_without(module, {"figure"})


def experiment_hash(module: str) -> str:
    """Hash of what a table depends on: the code that the module reaches, less its description, claims and figure."""
    others = [f"{name} {digest(name)}" for name in closure(module) if name != module]
    return hashlib.sha256("\n".join([_hash_without(module, {"figure", "claims"}), *others]).encode()).hexdigest()


def _hash_without(module: str, functions: set[str]) -> str:
    kept = [node for node in statements(module) if not _descriptive(node, functions)]
    return hashlib.sha256(repr(form(kept)).encode()).hexdigest()


def _descriptive(node: ast.stmt, functions: set[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name in functions
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets)
