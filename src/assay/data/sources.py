"""Named sources: ``digits``, ``mnist``, ``cifar10`` with a split, and ``folder:``, ``parquet:``, ``npz:`` paths.

``SOURCE[:split]`` for the named ones (``mnist:test``); ``KIND:PATH`` for the others.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.data.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
CONVERTED = {"P": "RGB", "PA": "RGB", "1": "L", "LA": "L"}  # modes whose numbers are no brightness of their own
HUB = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
CLASSES = {
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def load_data(source: str, split: str = "test") -> Data:
    """The data set that ``source`` names; see the module's text for the forms."""
    kind, _, rest = source.partition(":")
    if kind in NAMED:
        chosen = rest or split
        if chosen not in ("train", "test"):
            raise unknown(f"split of {kind}", chosen, ("train", "test"))
        return NAMED[kind](chosen)
    if kind in PATHS:
        if not rest:
            raise InputError(f"data source {source!r}: expected {kind}:PATH")
        path = Path(rest).expanduser()
        if not path.exists():
            raise InputError(f"data source {source!r}: {path} does not exist; expected a {PATHS[kind][0]}")
        return PATHS[kind][1](path)
    raise unknown("data source", kind, SOURCES)


def _digits(split: str) -> Data:
    """scikit-learn's bundled 8x8 digits: 1,797 images, 1,000 of them for training by a fixed draw."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None] / 16
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch_rng(0, "digits"))
    rows = (order[:1000] if split == "train" else order[1000:]).sort().values
    return Data(x[rows], y[rows], CLASSES["digits"], name=f"digits:{split}", index=rows)


def decode(images: list[bytes], where: str) -> torch.Tensor:
    """Encoded images of one size as (n, c, h, w) float32 in [0, 1], c = 1 (grey) or 3 (RGB); alpha is left out.

    Palettes, single bits and grey with alpha become what the others are: RGB beside any picture of colours, else grey;
    palettes of greys alone become RGB.
    """
    from PIL import Image, UnidentifiedImageError

    arrays, modes = [], []
    for row, raw in enumerate(images):
        try:
            picture = Image.open(io.BytesIO(raw))
            modes.append(picture.mode)
            array = np.asarray(picture.convert(CONVERTED[picture.mode]) if picture.mode in CONVERTED else picture)
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise InputError(f"{where}: image {row} cannot be decoded ({error}); expected PNG or JPEG bytes") from error
        arrays.append(array[..., None] if array.ndim == 2 else array[..., :3])
    arrays = _alike(arrays, modes)
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise InputError(f"{where}: images of {len(shapes)} different shapes ({sorted(shapes)[:3]}); expected one")
    if not arrays:
        raise InputError(f"{where} is empty; expected at least one image")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div_(255).contiguous()


def _alike(arrays: list[np.ndarray], modes: list[str]) -> list[np.ndarray]:
    """Pictures that were converted in the colours of the others: all grey, or all RGB."""
    if not CONVERTED.keys() & {*modes}:
        return arrays
    greys = [
        a.shape[2] == 1 or (m in CONVERTED and bool((a == a[..., :1]).all()))
        for a, m in zip(arrays, modes, strict=True)
    ]
    size = 1 if all(greys) and any(a.shape[2] == 1 for a in arrays) else 3
    return [
        np.broadcast_to(a[..., :size], (*a.shape[:2], size)) if m in CONVERTED else a
        for a, m in zip(arrays, modes, strict=True)
    ]


def coded(texts: np.ndarray) -> torch.Tensor:
    """Texts as codes 0, 1, ... in alphabetical order, int64 of the same shape."""
    codes = np.unique(texts, return_inverse=True)[1]
    return torch.from_numpy(codes.reshape(texts.shape).astype(np.int64))


def _table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); expected a parquet file") from error


def _from_table(table: Any, where: str, name: str, classes: tuple[str, ...] | None) -> Data:
    columns = table.column_names
    image = next((c for c in ("image", "img") if c in columns), None)
    if image is None or "label" not in columns:
        raise InputError(f"{where}: columns {columns}; expected 'image' or 'img' with encoded bytes, and 'label'")
    cells = table.column(image).to_pylist()
    x = decode([c["bytes"] if isinstance(c, dict) else c for c in cells], where)
    y = torch.from_numpy(table.column("label").to_numpy().astype(np.int64))
    fields = {}
    for c in columns:
        values = None if c in (image, "label") else table.column(c)
        if values is not None and values.null_count == 0:
            kind = str(values.type)
            if kind.startswith(("int", "uint", "float", "double", "bool")):
                fields[c] = torch.from_numpy(values.to_numpy().copy())
            elif kind.startswith(("list", "fixed_size_list")):
                fields[c] = torch.from_numpy(np.stack(values.to_pylist()))
            elif kind in ("string", "large_string") or kind.startswith("dictionary<values=string"):
                fields[c] = coded(np.array(values.to_pylist(), dtype=str))
    classes = classes or tuple(str(i) for i in range(int(y.max()) + 1))
    return Data(x, y, classes, name=name, fields=fields)


def _hub(kind: str) -> Callable[[str], Data]:
    def load(split: str) -> Data:
        root = os.environ.get("ASSAY_DATA")
        path = Path(root) / kind / f"{split}.parquet" if root else None
        if path is not None and path.is_file():
            return _from_table(_table(path), str(path), f"{kind}:{split}", CLASSES[kind])
        try:
            import datasets

            table = datasets.load_dataset(HUB[kind], split=split).data.table
        except ImportError as error:
            tried = f"{path} does not exist" if path else "ASSAY_DATA is not set"
            raise InputError(
                f"data source {kind}: {tried}, and the package 'datasets' is not installed (pip install 'assay[hf]'); "
                f"expected $ASSAY_DATA/{kind}/{split}.parquet or access to the hub"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"data source {kind}: not in $ASSAY_DATA and not fetched from the hub ({type(error).__name__}); "
                f"expected $ASSAY_DATA/{kind}/{split}.parquet or a network"
            ) from error
        return _from_table(table, HUB[kind], f"{kind}:{split}", CLASSES[kind])

    return load


def _folder(path: Path) -> Data:
    """One sub-folder a class, images inside."""
    names = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    if len(names) < 2:
        raise InputError(
            f"{path}: {len(names)} sub-folders; expected a folder with one sub-folder a class, at least two"
        )
    files = [
        (p, k) for k, n in enumerate(names) for p in sorted((path / n).iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES
    ]
    x = decode([p.read_bytes() for p, _ in files], str(path))
    return Data(x, torch.tensor([k for _, k in files]), tuple(names), name=f"folder:{path}")


def _parquet(path: Path) -> Data:
    return _from_table(_table(path), str(path), f"parquet:{path}", None)


def _npz(path: Path) -> Data:
    """Arrays ``x``, ``y``, optionally ``classes``, ``bounds``, ``index``; other arrays with n rows are fields.

    Texts in a field become codes 0, 1, ... in alphabetical order.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected an npz archive of plain arrays") from error
    if "x" not in arrays or "y" not in arrays:
        raise InputError(f"{path}: holds {sorted(arrays)}; expected arrays 'x' and 'y'")
    x, y = arrays.pop("x"), arrays.pop("y")
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{path}: y is {y.dtype}; expected integer labels")
    if x.dtype.kind not in "fiu" or x.ndim < 2:
        raise InputError(f"{path}: x is {x.dtype} of shape {x.shape}; expected numbers of shape (n, ...)")
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    classes, bounds, index = arrays.pop("classes", None), arrays.pop("bounds", None), arrays.pop("index", None)
    names = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(int(y.max(initial=0)) + 1)))
    fields = {
        k: coded(v) if v.dtype.kind in "US" else torch.from_numpy(v)
        for k, v in arrays.items()
        if v.dtype.kind in "fiubUS" and v.shape[:1] == x.shape[:1]
    }
    limits = (
        (float(bounds[0]), float(bounds[1]))
        if bounds is not None
        else (min(0.0, x.min(initial=0)), max(1.0, x.max(initial=1)))
    )
    return Data(
        torch.from_numpy(x),
        torch.from_numpy(y.astype(np.int64)),
        names,
        (float(limits[0]), float(limits[1])),
        f"npz:{path}",
        torch.from_numpy(index.astype(np.int64)) if index is not None else None,  # type: ignore[arg-type]
        fields,
    )


NAMED: dict[str, Callable[[str], Data]] = {"digits": _digits, "mnist": _hub("mnist"), "cifar10": _hub("cifar10")}
PATHS: dict[str, tuple[str, Callable[[Path], Data]]] = {
    "folder": ("folder with one sub-folder a class", _folder),
    "parquet": ("parquet file", _parquet),
    "npz": ("npz file", _npz),
}
SOURCES = (*NAMED, *PATHS)
