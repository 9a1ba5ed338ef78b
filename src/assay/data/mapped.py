"""Data larger than memory: arrays stay in files, and what is drawn from them in bulk goes to a file again."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.data.data import Data
from assay.data.guarded import check_labels
from assay.data.sources import coded
from assay.runtime.errors import InputError
from assay.runtime.store import Store

SMALL = 64 << 20  # bytes that a part may take in memory; a larger one is written to a file
BLOCK = 8 << 20  # bytes that are looked at at once
OWN = ("x", "y", "classes", "bounds")


@dataclass(frozen=True)
class MappedData(Data):
    """Data whose x lies in a file: memory does not grow with x, only labels and indices are in memory.

    ``folder`` holds the arrays, and ``index`` gives the rows there. A large part (a split, a subset) is written to a
    nameless file in the folder of the result store, which goes when the part does. A small one, and the same samples
    with other inputs, are plain Data. Sent to another process, it is opened there again.
    """

    folder: str = ""

    def _check(self) -> None:
        n = len(self.x)
        for name, t in {"y": self.y, "index": self.index, **self.fields}.items():
            if len(t) != n:
                raise InputError(f"data {self.name!r}: {name} has {len(t)} rows; expected {n}, one a sample")
        for rows in blocks(self.x):
            self._plain(rows)

    def _plain(self, rows: Tensor | slice) -> Data:
        """Some of the samples in memory."""
        fields = {k: v[rows] for k, v in self.fields.items()}
        return Data(self.x[rows], self.y[rows], self.classes, self.bounds, self.name, self.index[rows], fields)

    @cached_property
    def hash(self) -> str:
        """The hash that the same data have in memory."""
        h = hashlib.sha256(repr((self.classes, self.bounds, tuple(self.x.shape))).encode())
        for _, t in sorted({"x": self.x, "y": self.y, "index": self.index, **self.fields}.items()):
            for rows in blocks(t):
                h.update(t[rows].contiguous().numpy().tobytes())
        return h.hexdigest()

    def __getitem__(self, rows: Tensor | slice) -> Data:
        if isinstance(rows, slice):
            return super().__getitem__(rows)
        positions = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        if positions.dim() != 1 or len(positions) * row_bytes(self.x) <= SMALL:
            return self._plain(rows)
        fields = {k: v[rows] for k, v in self.fields.items()}
        return MappedData(
            gathered(self.x, positions), self.y[rows], self.classes, self.bounds, self.name, self.index[rows], fields,
            self.folder,
        )  # fmt: skip

    def with_x(self, x: Tensor) -> Data:
        return Data(x, self.y, self.classes, self.bounds, self.name, self.index, self.fields)

    def __reduce__(self) -> tuple[Callable[..., Data], tuple[Any, ...]]:
        return _reopened, (self.folder, self.y, self.classes, self.bounds, self.name, self.index, dict(self.fields))


def _reopened(
    folder: str,
    y: Tensor,
    classes: tuple[str, ...],
    bounds: tuple[float, float],
    name: str,
    index: Tensor,
    fields: Mapping[str, Tensor],
) -> Data:
    x = _inputs(Path(folder))
    if len(index) != len(x) or not index.equal(torch.arange(len(x))):
        x = gathered(x, index)
    return MappedData(x, y, classes, bounds, name, index, fields, folder)


def row_bytes(t: Tensor) -> int:
    """Bytes of one sample."""
    return t[0].numel() * t.element_size() if len(t) else 0


def blocks(t: Tensor) -> Iterator[slice]:
    """Slices of about ``BLOCK`` bytes that cover all rows; one, where there are none."""
    step = max(BLOCK // max(row_bytes(t), 1), 1)
    yield from (slice(k, k + step) for k in range(0, max(len(t), 1), step))


def gathered(x: Tensor, positions: Tensor) -> Tensor:
    """The rows of ``x`` at ``positions``, in a file."""
    return _filed(len(positions), x.shape[1:], (x[positions[r]] for r in blocks_of(x, len(positions))))


def blocks_of(x: Tensor, n: int) -> Iterator[slice]:
    """As ``blocks``, for ``n`` rows like those of ``x``."""
    step = max(BLOCK // max(row_bytes(x), 1), 1)
    yield from (slice(k, k + step) for k in range(0, n, step))


def _filed(n: int, shape: tuple[int, ...], parts: Iterator[Tensor]) -> Tensor:
    """float32 rows written to a nameless file, read from there."""
    try:
        file = tempfile.TemporaryFile(dir=Store().root)  # noqa: SIM115  (the mapping keeps it open)
        for part in parts:
            file.write(part.float().contiguous().numpy().tobytes())
        file.flush()
    except OSError as error:
        size = n * int(np.prod(shape)) * 4 >> 20
        raise InputError(f"{Store().root}: {error.strerror}; expected {size} MiB of space (ASSAY_CACHE)") from error
    return _tensor(np.memmap(file, np.float32, "r", shape=(n, *shape)))


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # nothing writes into data: that the mapping is read-only is what is wanted
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected an npy file of plain numbers") from error
    return array


def _inputs(folder: Path) -> Tensor:
    """x.npy as float32: mapped where it is that already, else converted once (uint8 from [0, 255] to [0, 1])."""
    array = _array(folder / "x.npy")
    if array.dtype.kind not in "fiu" or array.ndim < 2 or not len(array):
        where = f"{folder / 'x.npy'}: x is {array.dtype} of shape {array.shape}"
        raise InputError(f"{where}; expected numbers of shape (n, ...), n >= 1")
    if array.dtype == np.float32 and array.flags.c_contiguous:
        return _tensor(array)
    factor = np.float32(255 if array.dtype == np.uint8 else 1)
    step = max(BLOCK // max(array[0].nbytes, 1), 1)
    parts = (torch.from_numpy(array[k : k + step].astype(np.float32) / factor) for k in range(0, len(array), step))
    return _filed(len(array), array.shape[1:], parts)


def open_mapped(folder: Path) -> MappedData:
    """``x.npy`` and ``y.npy`` (integer labels) of a folder, optionally ``classes.npy`` and ``bounds.npy``.

    Other arrays with a row a sample are fields, texts in them codes in alphabetical order. x stays in its file where it
    is float32; of other numbers a float32 file is made in the folder of the result store.
    """
    names = sorted(p.stem for p in folder.glob("*.npy"))
    if not {"x", "y"} <= {*names}:
        raise InputError(f"{folder}: holds {', '.join(names) or 'no npy file'}; expected x.npy and y.npy")
    x, y = _inputs(folder), _array(folder / "y.npy")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise InputError(f"{folder / 'y.npy'}: y is {y.dtype} of shape {y.shape}; expected integer labels (n,)")
    if "classes" not in names:
        check_labels(folder / "y.npy", y)
    known = {n: _array(folder / f"{n}.npy") for n in names if n not in ("x", "y")}
    classes = tuple(map(str, known["classes"])) if "classes" in known else tuple(map(str, range(int(y.max()) + 1)))
    if "bounds" in known:
        low, high = map(float, known["bounds"])
    else:
        low = min(0.0, *(float(x[r].min()) for r in blocks(x)))
        high = max(1.0, *(float(x[r].max()) for r in blocks(x)))
    own = {k: v for k, v in known.items() if k not in OWN and v.shape[:1] == x.shape[:1]}
    fields = {k: coded(v) if v.dtype.kind in "US" else _tensor(v) for k, v in own.items() if v.dtype.kind in "fiubUS"}
    labels, name = torch.from_numpy(y.astype(np.int64)), f"mmap:{folder.absolute().name}"
    return MappedData(x, labels, classes, (low, high), name, None, fields, str(folder.resolve()))  # type: ignore[arg-type]
