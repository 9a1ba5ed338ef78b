"""Hugging Face data sets: from the hub, or from files of this machine; whole, or as a stream."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from assay.data.data import Data
from assay.data.guarded import check_modes
from assay.data.options import counted, listed, named
from assay.data.sources import IMAGE_SUFFIXES, decode
from assay.data.tabular import coded_labels, label_column, table_data
from assay.data.text import text_data
from assay.runtime.errors import InputError

SPLIT = re.compile(r"^(train|test|validation|valid|val|dev|unsupervised)(\[.*\])?$")
FILES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}
OPTIONS = ("limit", "label", "text", "image", "immutable", "integer")


def hub_data(rest: str, split: str, options: dict[str, str], where: str) -> Data:
    """``NAME[:CONFIG][:SPLIT]`` on the hub, or ``PATH[:SPLIT]`` here: what ``save_to_disk`` wrote, parquet, CSV or JSON
    lines, or a folder of images.

    With ``limit`` the rows are streamed and the first ``limit`` are taken. A column of images, else ``text``, else
    columns of numbers and names are the inputs. No code of a data set is ever run.
    """
    limit = counted(options, "limit", where)
    rows = _rows(rest, split, where, limit)
    return _from_rows(rows, options, limit, where, f"table:{rest}")


def _rows(rest: str, split: str, where: str, limit: int | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data source {where!r}: the package 'datasets' is not installed; expected pip install 'assay[hf]'"
        ) from error
    name, *more = rest.split(":")
    chosen = more.pop() if more and SPLIT.match(more[-1]) else split
    path = Path(name).expanduser()
    if len(more) > 1 or (path.exists() and more):
        raise InputError(f"data source {where!r}: expected hf:NAME[:CONFIG][:SPLIT] or hf:PATH[:SPLIT]")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"data source {where!r}: {path} does not exist; expected a data set of the hub or a path")
    try:
        if path.exists():
            return _local(datasets, path, chosen, limit is not None)
        return datasets.load_dataset(name, *more, split=chosen, streaming=limit is not None)
    except InputError:
        raise
    except Exception as error:  # the hub and its builders raise errors of many packages
        line = " ".join(str(error).split())[:160]
        raise InputError(
            f"data source {where!r}: not loaded ({type(error).__name__}: {line}); expected a data set with the split "
            f"{chosen!r}, and a network for one of the hub"
        ) from error


def _local(datasets: Any, path: Path, split: str, streaming: bool) -> Any:
    """Only builders that read plain files are named, so that no script beside the files is run."""
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise InputError(f"{path}: splits {', '.join(found)}; expected {split!r} or hf:{path}:SPLIT")
            found = found[split]
        return found.to_iterable_dataset() if streaming else found
    if path.is_file():
        builder, files = FILES.get(path.suffix), [str(path)]
    else:
        mine = sorted(str(p) for p in path.rglob("*.parquet"))
        builder, files = ("parquet", [f for f in mine if split in Path(f).name] or mine) if mine else (None, [])
        if not mine and any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.rglob("*")):
            return datasets.load_dataset("imagefolder", data_dir=str(path), split="train", streaming=streaming)
    if builder is None:
        raise InputError(f"{path}: holds no parquet, CSV or JSON lines, no images and no saved data set; expected one")
    return datasets.load_dataset(builder, data_files=files, split="train", streaming=streaming)


def _from_rows(rows: Any, options: dict[str, str], limit: int | None, where: str, table_name: str) -> Data:
    import datasets

    features = rows.features or {}
    images = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    for c in images:
        rows = rows.cast_column(c, datasets.Image(decode=False))
    table = _columns(rows, limit, where)
    chosen = label_column([c for c in table if c != named(options, "text")], named(options, "label"), where)
    kind = features.get(chosen)
    names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    if images:
        image = named(options, "image") or images[0]
        if image not in table:
            raise InputError(f"{where}: no column {image!r}; expected one of {', '.join(table)}")
        pictures = [_bytes(cell) for cell in table[image]]
        x = decode(pictures, where)
        check_modes(pictures, where)
        y, classes = coded_labels(table[chosen], f"{where}: column {chosen!r}", None, names)
        return Data(x, y, classes, name=where)
    text = named(options, "text")
    if text is not None:
        y, classes = coded_labels(table[chosen], f"{where}: column {chosen!r}", None, names)
        return text_data(texts_of(table, text, where), y, classes, f"{table_name}#text={text}")
    immutable, integer = (listed(options, key) for key in ("immutable", "integer"))
    return table_data(table, table_name, label=chosen, immutable=immutable, integer=integer, classes=names)


def _columns(rows: Any, limit: int | None, where: str) -> dict[str, list[Any]]:
    try:
        found = list(itertools.islice(iter(rows), limit))
    except Exception as error:  # a stream breaks in as many ways as the network
        line = " ".join(str(error).split())[:160]
        raise InputError(f"{where}: the rows cannot be read ({type(error).__name__}: {line})") from error
    if not found:
        raise InputError(f"{where} is empty; expected at least one row")
    return {c: [row.get(c) for row in found] for c in found[0]}


def _bytes(cell: Any) -> bytes:
    content: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if content is not None else Path(cell["path"]).read_bytes()


def texts_of(table: Any, column: str, where: str) -> list[str]:
    """The cells of a column, each of which must be a text."""
    if column not in table:
        raise InputError(f"{where}: no column {column!r}; expected one of {', '.join(table)}")
    cells = list(table[column])
    odd = next((i for i, c in enumerate(cells) if not isinstance(c, str) or not c), None)
    if odd is not None:
        raise InputError(f"{where}: column {column!r}, row {odd + 1}: holds {cells[odd]}; expected a text")
    return cells
