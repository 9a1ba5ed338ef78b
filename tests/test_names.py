"""Names that functions read exist: linters skip them, as shapes in annotations are names to them."""

from __future__ import annotations

import builtins
import dis
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import assay


def read(code: CodeType) -> Iterator[str]:
    """The global names that code, and the code inside it, reads."""
    yield from (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from read(inner)


def test_global_names_exist() -> None:
    lacking = []
    for found in pkgutil.walk_packages(assay.__path__, "assay."):
        module = importlib.import_module(found.name)
        path = Path(str(module.__spec__.origin)) if module.__spec__ else Path()
        known = {*vars(module), *vars(builtins)}
        code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        lacking += [f"{found.name}: {name}" for name in sorted({*read(code)} - known)]
    assert lacking == []
