"""Hashes of parts of a paper's module: of what decides its base seed, and of what its tables depend on."""

from __future__ import annotations

import ast
import hashlib
import json

from assay.papers.model import Scale
from assay.runtime.codehash import form, source_hash, statements


def claims_hash(module: str) -> str:
    """Hash of the module's experiment and claims: all of its code but the description PAPER and the figure."""
    return _hash_without(module, {"figure"})


def experiment_hash(module: str) -> str:
    """Hash of what a table depends on: the code that the experiment and its setup reach."""
    return source_hash(module, ("setup", "experiment"))


def judgement_hash(module: str) -> str:
    """Hash of the code that draws the claims from the tables."""
    return source_hash(module, ("claims",))


def run_hash(module: str, scale: Scale) -> str:
    """Hash of all that a recorded run at a scale follows from: experiment, claims, and the scale's own sizes.

    The description PAPER, its other scales and the figure may change without a recorded run growing stale.
    """
    sizes = json.dumps([scale.name, scale.seeds, dict(scale.sizes)], sort_keys=True, default=repr)
    code = source_hash(module, ("setup", "experiment", "claims"))
    return hashlib.sha256(f"{code}\n{sizes}".encode()).hexdigest()


def _hash_without(module: str, functions: set[str]) -> str:
    kept = [node for node in statements(module) if not _descriptive(node, functions)]
    return hashlib.sha256(repr(form(kept)).encode()).hexdigest()


def _descriptive(node: ast.stmt, functions: set[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name in functions
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets)
