"""Tables: a row a sample, columns of different units, some of which an attacker cannot change."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from assay.data.data import Data
from assay.data.options import listed, parsed
from assay.data.text import TextData
from assay.runtime.errors import InputError, unknown

LABELS = ("label", "target", "y")
MARK = "#"
KNOWN = ("columns", "categories", "ranges", "immutable", "integer")
TABLES = ("csv:", "jsonl:", "parquet:", "table:")
MOST_CLASSES = 10_000  # whole labels above this are taken for names


@dataclass(frozen=True)
class TabularData(Data):
    """Data whose samples are rows of a table: x (n, d), each column in its own units.

    ``columns`` names the d inputs. ``categories`` has for each column the names behind its codes 0, 1, ..., and nothing
    for a column of numbers. ``ranges`` are the columns' least and greatest values, what a share of the range refers to.
    ``immutable`` and ``integer`` are positions of columns that no attack changes, and that hold whole numbers. Columns
    of codes are both: a step from one code to the next has no length.
    """

    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    ranges: tuple[tuple[float, float], ...] = field(default=())
    immutable: tuple[int, ...] = ()
    integer: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x.dim() != 2:
            raise InputError(f"data {self.name!r}: x has shape {tuple(self.x.shape)}; expected (n, columns)")
        d = self.x.shape[1]
        defaults = {
            "columns": tuple(map(str, range(d))),
            "categories": ((),) * d,
            "ranges": tuple(zip(self.x.amin(0).tolist(), self.x.amax(0).tolist(), strict=True)),
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
            if len(getattr(self, name)) != d:
                raise InputError(f"data {self.name!r}: {len(getattr(self, name))} {name}; expected {d}, one a column")
        for k in (*self.immutable, *self.integer):
            if not 0 <= k < d:
                raise InputError(f"data {self.name!r}: column {k}; expected 0 to {d - 1}")
        exact = 2 / torch.finfo(self.x.dtype).eps  # the largest number up to which all whole ones are there
        for k in self.integer:
            most = float(self.x[:, k].abs().max())
            if most > exact:
                where = f"data {self.name!r}: column {self.columns[k]!r} is marked integer and holds {most:.15g}"
                raise InputError(f"{where}; expected up to {exact:.15g}, as {self.x.dtype} has gaps beyond")
            broken = (self.x[:, k] != self.x[:, k].round()).nonzero()[:, 0]
            if len(broken):
                cell, row = float(self.x[broken[0], k]), int(broken[0])
                where = f"data {self.name!r}: row {row + 1}, column {self.columns[k]!r}"
                raise InputError(f"{where}: {cell:g}; expected a whole number, as the column is marked integer")

    @cached_property
    def hash(self) -> str:
        """Content hash over the data and what is known of the columns."""
        known = tuple(getattr(self, name) for name in KNOWN)
        plain: str = Data.hash.func(self)  # type: ignore[attr-defined]
        return hashlib.sha256(f"{plain} {known!r}".encode()).hexdigest()

    @property
    def constrained(self) -> list[str]:
        """The names of the columns that are immutable or integer."""
        return [self.columns[k] for k in sorted({*self.immutable, *self.integer})]

    @property
    def described(self) -> str:
        """What is known of the columns, as JSON that ``table_of`` takes."""
        return json.dumps({name: getattr(self, name) for name in KNOWN})


def table_of(data: Data, described: str) -> TabularData:
    """``data`` as the table whose columns ``described`` (see TabularData) tells."""
    known = json.loads(described)
    return TabularData(
        *(data.x, data.y, data.classes, data.bounds, data.name, data.index, data.fields),
        columns=tuple(map(str, known["columns"])),
        categories=tuple(tuple(map(str, names)) for names in known["categories"]),
        ranges=tuple((float(low), float(high)) for low, high in known["ranges"]),
        immutable=tuple(map(int, known["immutable"])),
        integer=tuple(map(int, known["integer"])),
    )


def marked(name: str, immutable: Iterable[int], integer: Iterable[int]) -> str:
    """A name of a data set that tells its marked columns by position: what a saved subject is read back from."""
    marks = {"immutable": sorted(immutable), "integer": sorted(integer)}
    text = "&".join(f"{k}={','.join(map(str, v))}" for k, v in marks.items() if v)
    return f"{name}{MARK}{text}" if text else name


def restored(splits: Mapping[str, Data]) -> dict[str, Data]:
    """Saved splits as the tables and texts that they were, which their names tell where nothing else does.

    The ranges of such a table's columns are those over all splits of its name; its columns have no names.
    """
    whole: dict[str, list[Tensor]] = {}
    for data in splits.values():
        whole.setdefault(data.name, []).append(data.x)
    return {key: _restored(data, whole[data.name]) for key, data in splits.items()}


def _restored(data: Data, parts: Sequence[Tensor]) -> Data:
    _, _, text = data.name.partition(MARK)
    plain = (data.x, data.y, data.classes, data.bounds, data.name, data.index, data.fields)
    if isinstance(data, TabularData) or data.x.dim() != 2 or not data.name.startswith(TABLES):
        return data
    if text.startswith("text="):
        return TextData(*plain)
    marks = parsed(text, data.name, ("immutable", "integer"))
    try:
        immutable, integer = (tuple(map(int, listed(marks, key))) for key in ("immutable", "integer"))
    except ValueError as error:
        raise InputError(f"data {data.name!r}: {error}; expected positions of columns") from error
    limits = zip(
        torch.stack([p.amin(0) for p in parts]).amin(0).tolist(),
        torch.stack([p.amax(0) for p in parts]).amax(0).tolist(),
        strict=True,
    )
    return TabularData(*plain, ranges=tuple(limits), immutable=immutable, integer=integer)


def same_columns(parts: Sequence[Data]) -> None:
    """Raise InputError where tables that are used together differ in columns, codes or classes."""
    tables = [p for p in parts if isinstance(p, TabularData)]
    for a, b in pairwise(tables):
        pairs = {"columns": (a.columns, b.columns), "classes": (a.classes, b.classes)}
        pairs |= {
            f"names in column {c!r}": (first, second)
            for c, first, second in zip(a.columns, a.categories, b.categories, strict=False)
        }
        for what, (first, second) in pairs.items():
            if first != second:
                raise InputError(
                    f"{b.name}: {what} are {list(second)}, and {list(first)} in {a.name}; expected the same: "
                    "#like=FILE reads a table with the codes of another"
                )


def table_data(
    table: Mapping[str, Sequence[object] | np.ndarray],
    name: str,
    *,
    label: str | None = None,
    immutable: Sequence[str] = (),
    integer: Sequence[str] = (),
    like: TabularData | None = None,
    classes: tuple[str, ...] | None = None,
) -> TabularData:
    """Columns of numbers and of names as TabularData: names become codes, in alphabetical order or that of ``like``.

    ``classes`` names those of labels that are codes already. The label is the column ``label``, else ``label``,
    ``target`` or ``y``, else the last one. InputError names row and column of a missing value.
    """
    names = list(table)
    chosen = label_column(names, label, name)
    inputs = [c for c in names if c != chosen]
    if not inputs:
        raise InputError(f"{name}: no column besides {chosen!r}; expected at least one input")
    if like is not None and tuple(inputs) != like.columns:
        raise InputError(f"{name}: columns {inputs}; expected {list(like.columns)}, as in {like.name}")
    y, classes = coded_labels(table[chosen], f"{name}: column {chosen!r}", like.classes if like else None, classes)
    values, categories = [], []
    for k, c in enumerate(inputs):
        column, known = _column(table[c], f"{name}: column {c!r}", like.categories[k] if like else None)
        values.append(column)
        categories.append(known)
    x = torch.from_numpy(np.stack(values, 1))
    codes = {k for k, known in enumerate(categories) if known}
    fixed = codes | {_position(c, inputs, f"{name}: immutable") for c in immutable}
    whole = codes | {_position(c, inputs, f"{name}: integer") for c in integer}
    return TabularData(
        x,
        y,
        classes,
        (float(x.min()), float(x.max())) if x.min() < x.max() else (float(x.min()), float(x.min()) + 1),
        marked(name, fixed, whole),
        columns=tuple(inputs),
        categories=tuple(categories),
        immutable=tuple(sorted(fixed)),
        integer=tuple(sorted(whole)),
    )


def label_column(names: Sequence[str], label: str | None, where: str) -> str:
    """The column of labels: the one named, else ``label``, ``target`` or ``y``, else the last."""
    if label is not None and label not in names:
        raise unknown(f"column of {where}", label, names)
    if not names:
        raise InputError(f"{where}: no columns; expected a header")
    return label or next((c for c in LABELS if c in names), names[-1])


def _position(column: str, inputs: Sequence[str], where: str) -> int:
    if column in inputs:
        return list(inputs).index(column)
    if column.isdigit() and int(column) < len(inputs):
        return int(column)
    raise unknown(f"column of {where}", column, inputs)


def _values(cells: Sequence[object] | np.ndarray, where: str) -> np.ndarray:
    """One array of numbers or of texts; InputError names the row of a missing or odd cell."""
    if not len(cells):
        raise InputError(f"{where}: no rows; expected at least one")
    kinds = set() if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub" else {type(c) for c in cells}
    if not kinds <= {bool, int, float}:
        missing = next((i for i, c in enumerate(cells) if c is None or c == ""), None)
        if missing is not None:
            raise InputError(f"{where}, row {missing + 1}: no value; expected one in every row")
    if kinds <= {bool, int, float}:
        values = np.asarray(cells, dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(f"{where}, row {bad[0] + 1}: {values[bad[0]]}; expected a finite number")
        return values
    if kinds != {str}:
        named = sorted(k.__name__ for k in kinds)
        raise InputError(f"{where}: holds {' and '.join(named)}; expected numbers, or texts, in every row")
    return np.array(cells, dtype=str)


def _column(
    cells: Sequence[object] | np.ndarray, where: str, known: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column as float32, and the names behind its codes where it holds names."""
    values = _values(cells, where)
    if values.dtype.kind == "f":
        if known:
            raise InputError(f"{where}: holds numbers; expected the names {list(known)[:5]}")
        single = values.astype(np.float32)
        lost = np.flatnonzero((single != values) | (np.abs(values) >= 2**53))
        if len(lost) and (values == values.round()).all():
            text = f"{where}, row {lost[0] + 1}: {values[lost[0]]:.17g} is taken as {single[lost[0]]:.17g}"
            warnings.warn(f"{text}: float32 has all whole numbers up to {2**24} only", UserWarning, stacklevel=2)
        return single, ()
    if known == ():
        raise InputError(f"{where}: holds texts ({values[0]!r}); expected numbers")
    names = known or tuple(map(str, np.unique(values)))
    return _codes(values, names, where).astype(np.float32), names


def _codes(values: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    code = {name: k for k, name in enumerate(names)}
    strange = next((i for i, v in enumerate(values) if v not in code), None)
    if strange is not None:
        raise InputError(f"{where}, row {strange + 1}: {str(values[strange])!r}; expected one of {', '.join(names)}")
    return np.array([code[v] for v in values])


def coded_labels(
    cells: Sequence[object] | np.ndarray,
    where: str,
    known: tuple[str, ...] | None = None,
    named: tuple[str, ...] | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (n,) int64 and the classes: whole numbers from 0 count as they are, other labels in sorted order.

    ``known`` are classes that the labels must be among; ``named`` the names of labels that are codes already.
    """
    values = _values(cells, where)
    if values.dtype.kind != "f":
        names = known or tuple(map(str, np.unique(values)))
        return torch.from_numpy(_codes(values, names, where)), names
    whole = values.astype(np.int64)
    if (whole != values).any():
        bad = int(np.flatnonzero(whole != values)[0])
        raise InputError(f"{where}, row {bad + 1}: {values[bad]:g}; expected a class: a whole number or a name")
    least, most = int(whole.min()), int(whole.max())
    if named is not None and (least < 0 or most >= len(named)):
        raise InputError(f"{where}: labels span [{least}, {most}]; expected 0 to {len(named) - 1}")
    if named is not None or (known is None and least >= 0 and most < MOST_CLASSES):
        return torch.from_numpy(whole), named or tuple(map(str, range(most + 1)))
    names = known or tuple(map(str, np.unique(whole)))
    return torch.from_numpy(_codes(whole.astype(str), names, where)), names
