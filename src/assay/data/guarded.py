"""Readers of files behind checks of size: a small file that asks for much memory or time is refused unread."""

from __future__ import annotations

import functools
import io
import math
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from assay.data.data import Data
from assay.runtime.errors import AssayError, InputError

EXPANSION = 200  # times the size of its file; numbers seldom shrink to less than a tenth
FREE = 256 << 20  # bytes that any file may expand to
CLASSES = 1_000_000
COLUMNS = 1000
MODES = ("L", "RGB", "RGBA", "P", "PA", "1", "LA")
T = TypeVar("T", Path, str)


def guarded(read: Callable[[T], Data], check: Callable[[Path], None] | None = None) -> Callable[[T], Data]:
    """``read`` after ``check``; whatever either raises on a strange file is an InputError of one line."""

    @functools.wraps(read)
    def safe(source: T) -> Data:
        try:
            if check is not None:
                check(Path(source))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # remarks of decoders on the metadata of a picture
                warnings.simplefilter("error", RuntimeWarning)  # numbers that overflow, pictures that may be bombs
                return read(source)
        except AssayError:
            raise
        except Exception as error:  # arrays of odd shapes and kinds, images that are no images, no memory
            raise InputError(f"{source}: {described(error)}; expected samples and labels") from error

    return safe


def described(error: BaseException) -> str:
    """The kind of an error and the start of what it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def check_npz(path: Path) -> None:
    """Refuse an archive that expands out of proportion, and labels or axes without samples that would."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        expanded, size = sum(i.file_size for i in archive.infolist()), path.stat().st_size
        check_expansion(path, expanded, size)
        names = set(archive.namelist())
        for name in sorted(names & {"x.npy", "y.npy", "index.npy"}):
            with archive.open(name) as member:
                shape = _shape(member)
                if math.prod(shape) == 0 and max(shape, default=0) > size:
                    raise InputError(f"{path}: {name} has shape {shape}; expected an array that holds numbers")
        if "y.npy" in names and "classes.npy" not in names:
            with archive.open("y.npy") as member:
                check_labels(path, np.lib.format.read_array(member, allow_pickle=False))


def _shape(member: Any) -> tuple[int, ...]:
    read = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    return read[np.lib.format.read_magic(member) != (1, 0)](member)[0]


def check_expansion(path: Path | str, expanded: int, size: int) -> None:
    """Refuse what expands more than 200-fold, and to more than 256 MiB."""
    if expanded > max(FREE, EXPANSION * size):
        raise InputError(
            f"{path}: {size:,} bytes would take {expanded:,}; expected at most {EXPANSION} times the size "
            "(an archive may be stored uncompressed)"
        )


def check_labels(path: Path, y: np.ndarray) -> None:
    """Refuse a label that would make a million classes."""
    if y.dtype.kind in "iu" and y.size and int(y.max()) >= CLASSES:
        raise InputError(f"{path}: label {int(y.max())}; expected labels from 0 to less than {CLASSES:,}")


def check_images(path: Path) -> None:
    """As ``check_table`` for a table of images, each of which takes bytes; and no label that makes too many classes."""
    import pyarrow.parquet as pq

    check_table(path)
    with pq.ParquetFile(path) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows > size:
            raise InputError(f"{path}: {rows:,} rows in {size:,} bytes; expected encoded images")
        if file.schema_arrow.names.count("label") == 1:
            check_labels(path, file.read(["label"]).column("label").to_numpy())


def check_modes(images: Iterable[Path | bytes], where: str) -> None:
    """Refuse pictures that are no grey and no RGB without a choice of their own: inks, wide or signed numbers."""
    from PIL import Image

    for k, image in enumerate(images):
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as picture:
            if picture.mode not in MODES:
                name = image.name if isinstance(image, Path) else k
                raise InputError(f"{where}: image {name} is of mode {picture.mode}; expected {', '.join(MODES)}")


def check_table(path: Path) -> None:
    """Refuse a parquet file of too many columns, and one that expands out of proportion."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, thrift_container_size_limit=100_000) as file:
            meta = file.metadata
            if meta.num_columns > COLUMNS:
                raise InputError(f"{path}: {meta.num_columns:,} columns; expected at most {COLUMNS:,}")
            groups = [meta.row_group(k) for k in range(meta.num_row_groups)]
            cells = max(meta.num_rows, sum(g.num_rows for g in groups)) * meta.num_columns
            check_expansion(path, max(8 * cells, sum(g.total_byte_size for g in groups)), path.stat().st_size)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read ({reason}); expected a parquet file") from error
