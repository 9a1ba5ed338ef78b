"""Reading a ``torch.export`` archive without running anything that it holds.

``torch.export.load`` unpickles weights, constants and sample inputs that say so, evaluates the sizes in the graph as
Python, calls any function of torch that a node names, and pastes names into code. So the archive is taken apart here:
what is not on the lists below is refused, and a new archive is made of what is left, which torch then loads.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.runtime.errors import InputError

PLAIN = re.compile(r"[\w.+\-]*")  # of every other string: no call and no subscript can be made of it
TARGET = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+|_operator\.\w+|torch\.sym_\w+")
FILES = re.compile(r"aten\.(from_file|save|load)\b|prims\._?(print|load)")  # operators that reach out of the process
OPERATORS = re.compile(r"add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem")
WORDS = re.compile(  # in the sizes of a graph
    r"[suzif]+\d+|Symbol|positive|integer|nonnegative|True|False|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|CeilToInt"
    r"|FloorToInt|TruncToInt|IntTrueDiv|ToFloat|PowByNatural|Where|Identity|Eq|Ne|Le|Lt|Ge|Gt"
)
EXPRESSION = re.compile(r"[\w\s+\-*/%(),=<>&|~']*")
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
KEPT = re.compile(r"(archive_format|archive_version|byteorder|version|\.data/\w+)|data/(weights|constants)/\w+")
LARGEST = 16 << 30


def clean(path: Path, where: str) -> io.BytesIO:
    """The archive of one exported program, rebuilt from its harmless parts; InputError where others are needed."""
    files = _members(path, where)
    graph = _document(files, "models/model.json", where)
    _strip(graph)
    for place, text in _strings(graph, ""):
        _check(place, text, where)
    kept = {name: raw for name, raw in files.items() if KEPT.fullmatch(name)}
    for room in ("weights", "constants"):
        config = f"data/{room}/model_{room}_config.json"
        kept[config] = json.dumps(_payload(_document(files, config, where), where)).encode()
    kept |= {"models/model.json": json.dumps(graph).encode(), "data/sample_inputs/model.pt": b""}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, raw in kept.items():
            archive.writestr(f"model/{name}", raw)
    made.seek(0)
    return made


def _members(path: Path, where: str) -> dict[str, bytes]:
    """The files of the archive by their path below its root."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(e.file_size for e in entries) > LARGEST:
                raise InputError(f"{where}: holds more than {LARGEST >> 30} GB; expected an exported program")
            files = {e.filename.partition("/")[2]: archive.read(e) for e in entries}
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{where}: cannot be read ({error}); expected an archive of torch.export.save") from error
    if len(files) != len(entries):
        raise InputError(f"{where}: holds two files of one name; expected an archive of torch.export.save")
    return files


def _document(files: dict[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(files[name])
    except KeyError as error:
        raise InputError(
            f"{where}: no {name} in it; expected an archive that torch.export.save of torch 2.9 or later wrote"
        ) from error
    except ValueError as error:
        raise InputError(f"{where}: {name} cannot be read; expected JSON") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: {name} holds {type(found).__name__}; expected a table")
    return found


def _strip(graph: Any) -> None:
    """Take out what only tells of the code that was exported: traces and the names of modules."""
    if isinstance(graph, dict):
        if "target" in graph and "metadata" in graph:
            graph["metadata"] = {}
        for value in graph.values():
            _strip(value)
    elif isinstance(graph, list):
        for value in graph:
            _strip(value)


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every string with the key that it stands under, and every key."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield "", k
            yield from _strings(v, k)
    elif isinstance(value, list):
        for v in value:
            yield from _strings(v, key)
    elif isinstance(value, str):
        yield key, value


def _check(key: str, text: str, where: str) -> None:
    """Refuse a string that torch would turn into something that runs."""
    if key == "target":
        operator = text.startswith("_operator.") and not OPERATORS.fullmatch(text.partition(".")[2])
        harmless = bool(TARGET.fullmatch(text)) and not FILES.search(text) and not operator
    elif key == "expr_str":
        words = re.findall(r"[A-Za-z_]\w*", text)
        harmless = bool(EXPRESSION.fullmatch(text)) and all(WORDS.fullmatch(w) for w in words)
    elif key in ("in_spec", "out_spec"):
        harmless = _is_plain_tree(text)
    elif key in ("as_string", "as_strings"):  # an operator's argument, which is quoted
        return
    else:
        harmless = bool(PLAIN.fullmatch(text))
    if not harmless:
        raise InputError(f"{where}: {key or 'name'} {text[:60]!r} could run code; expected plain operators of torch")


def _is_plain_tree(text: str) -> bool:
    """Whether a structure of inputs or outputs is made of tuples, lists and dicts alone."""
    if not text:
        return True
    try:
        todo = json.loads(text)[1:]
    except (ValueError, TypeError):
        return False
    while todo:
        node = todo.pop()
        if not isinstance(node, dict) or node.get("type") not in CONTAINERS:
            return False
        if not all(PLAIN.fullmatch(t) for _, t in _strings(json.loads(node.get("context") or "null"), "")):
            return False
        todo += node.get("children_spec", [])
    return True


def _payload(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The list of stored tensors, none of which is pickled."""
    for name, entry in config.get("config", {}).items():
        path = str(entry.get("path_name", ""))
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", path):
            raise InputError(f"{where}: {name!r} is stored as a pickled object; expected plain tensors alone")
    return config
