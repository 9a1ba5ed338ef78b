"""Every form of a data source: the named sets and files of ``load_data``, tables, texts, hub sets and mapped arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from assay.data.data import Data
from assay.data.guarded import check_modes, check_table
from assay.data.hub import OPTIONS as HUB_OPTIONS
from assay.data.hub import hub_data, texts_of
from assay.data.mapped import open_mapped
from assay.data.options import divided, listed, named, parsed
from assay.data.sources import IMAGE_SUFFIXES, NAMED, PATHS, load_data
from assay.data.tabular import MARK, coded_labels, label_column, table_data
from assay.data.text import text_data
from assay.runtime.errors import InputError, unknown

TABLE_OPTIONS = ("label", "text", "immutable", "integer", "like")
TEXTS = ("text", "sentence", "review", "content")
Table = Mapping[str, Any]


def open_data(source: str, split: str = "test") -> Data:
    """The data set that ``source`` names, of any kind: ``KIND:REST`` or a named set; docs/data.md lists all forms.

    ``split`` is the one to take where the source holds several and names none. The name of the data tells the file but
    not its folder: random draws depend on the name, and must not on where a file lies. Raises InputError for what
    cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind not in (*NAMED, *PATHS, *KINDS):
        raise unknown("data source", kind, (*NAMED, *PATHS, *KINDS))
    path, options = divided(rest)
    data = _opened(source, split, kind, path, options)
    where = path.partition(":")[0] if kind == "hf" else path
    return data if kind in NAMED or not Path(where).expanduser().exists() else _without_folder(data, where, kind)


def _without_folder(data: Data, where: str, kind: str) -> Data:
    written = where if kind == "hf" else str(Path(where).expanduser())
    head, _, rest = data.name.partition(":")
    if not rest.startswith(written):
        return data
    file = os.path.basename(os.path.abspath(written)).replace(MARK, "%23")
    name = f"{head}:{file}{rest.removeprefix(written)}"
    return data if name == data.name else replace(data, name=name)


def _opened(source: str, split: str, kind: str, path: str, options: str) -> Data:
    file = Path(path).expanduser()
    if kind not in KINDS and not (kind == "parquet" and path and file.is_file() and not _holds_images(file)):
        data = load_data(source, split)
        if kind in ("folder", "parquet"):
            check_modes(_pictures(file), source)
        return data
    if not path:
        raise InputError(f"data source {source!r}: expected {kind}:PATH")
    if kind == "hf":
        return hub_data(path, split, parsed(options, source, HUB_OPTIONS), source)
    if kind == "mmap":
        if options or not file.is_dir():
            raise InputError(f"data source {source!r}: {file} is no folder; expected one with x.npy and y.npy")
        return open_mapped(file)
    return _from_file(kind, file, parsed(options, source, TABLE_OPTIONS))


def _pictures(file: Path) -> Iterator[Path | bytes]:
    """The images that a folder or a table holds, one at a time."""
    if file.is_dir():
        yield from (p for p in sorted(file.glob("*/*")) if p.suffix.lower() in IMAGE_SUFFIXES)
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        column = next(c for c in ("image", "img") if c in table.schema_arrow.names)
        for part in table.iter_batches(columns=[column]):
            yield from (c["bytes"] if isinstance(c, dict) else c for c in part.column(0).to_pylist())


def _holds_images(file: Path) -> bool:
    """Whether a parquet file is one of images, or of whatever else ``load_data`` says what is wrong with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool({"image", "img"} & {*pq.read_schema(file).names})
    except (pa.ArrowException, OSError):
        return True


def read_text(
    path: str | Path, *, text: str | None = None, label: str | None = None
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Texts, their labels and the classes of a ``.csv``, ``.jsonl`` or ``.parquet`` file.

    ``text`` is the column of texts (default ``text``, ``sentence``, ``review`` or ``content``); ``label`` as in
    ``csv:``.
    """
    file = Path(path).expanduser()
    kind = next((k for k in READERS if file.suffix.lower() == f".{k}"), None)
    if kind is None:
        raise InputError(f"{file}: expected a file that ends in {', '.join(f'.{k}' for k in READERS)}")
    table = READERS[kind](file)
    column = text or next((c for c in TEXTS if c in table), None)
    if column is None:
        raise InputError(f"{file}: columns {', '.join(table)}; expected one of texts ({', '.join(TEXTS)})")
    y, classes = _labelled(table, column, label, str(file))
    return texts_of(table, column, str(file)), y.tolist(), classes


def _from_file(kind: str, file: Path, options: dict[str, str]) -> Data:
    label, text, name = named(options, "label"), named(options, "text"), f"{kind}:{file}"
    table = READERS[kind](file)
    if text is not None:
        y, classes = _labelled(table, text, label, name)
        return text_data(texts_of(table, text, name), y, classes, f"{name}#text={text}")
    like = named(options, "like")
    return table_data(
        table,
        name,
        label=label,
        immutable=listed(options, "immutable"),
        integer=listed(options, "integer"),
        like=None
        if like is None
        else table_data(READERS[kind](Path(like).expanduser()), f"{kind}:{like}", label=label),
    )


def _labelled(table: Table, text: str, label: str | None, where: str) -> tuple[Tensor, tuple[str, ...]]:
    chosen = label_column([c for c in table if c != text], label, where)
    return coded_labels(table[chosen], f"{where}: column {chosen!r}")


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {what}")
    return path


def _arrow(table: Any) -> Table:
    """Columns as arrays: numbers, or objects with None where there is no value."""
    found = {}
    for name in table.column_names:
        column = table.column(name)
        kind = str(column.type)
        if kind.startswith("dictionary"):
            column = column.cast(column.type.value_type)
        plain = kind.startswith(("int", "uint", "float", "double", "bool")) and column.null_count == 0
        found[name] = column.to_numpy() if plain else column.to_pylist()
    return found


def read_csv(path: Path) -> Table:
    """A CSV file with a header; an empty cell has no value, in a column of texts "NA" is a text."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        table = csv.read_csv(_existing(path, "a CSV file with a header"))
    except pa.ArrowException as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({line}); expected a CSV file with a header") from error
    for k, field in enumerate(table.schema):
        if field.name in table.column_names[:k]:
            raise InputError(f"{path}: column {field.name!r} occurs twice in the header; expected names that differ")
        if pa.types.is_binary(field.type):  # what pyarrow makes of a text in another encoding
            raise InputError(f"{path}: column {field.name!r} is not UTF-8; expected a CSV file in that encoding")
    return _arrow(table)


def read_parquet(path: Path) -> Table:
    """A parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_table(_existing(path, "a parquet file"))
    try:
        return _arrow(pq.read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); expected a parquet file") from error


def read_jsonl(path: Path) -> Table:
    """One JSON object a line, all with the keys of the first."""
    rows: list[dict[str, Any]] = []
    try:
        lines = _existing(path, "a file with one JSON object a line").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason}); expected one JSON object a line") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise InputError(f"{path}, line {number}: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict) or (rows and row.keys() != rows[0].keys()):
            keys = f"the keys {', '.join(rows[0])}" if rows else "keys"
            raise InputError(f"{path}, line {number}: expected an object with {keys}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} is empty; expected one JSON object a line")
    return {key: [row[key] for row in rows] for key in rows[0]}


READERS: dict[str, Callable[[Path], Table]] = {"csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet}
KINDS = ("csv", "jsonl", "hf", "mmap")
