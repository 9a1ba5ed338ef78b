"""The annotations of the REAP benchmark, from its CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError
from assay.vision.patch_renderer import PatchRenderer
from assay.vision.relight import CHANNELS
from assay.vision.scenes import Scenes

COLUMNS = {"percentile": "percentile_coeffs", "polynomial": "polynomial_coeffs"}
COLUMNS["color-transfer"] = "color_transfer_coeffs"


def load_reap(
    path: str | Path,
    images: Mapping[str, Float[Tensor, "3 H W"]],
    shape: str,
    mask: Float[Tensor, "1 h w"],
    obj_mask: Float[Tensor, "1 h w"],
    *,
    label: int = 0,
    scale: tuple[float, float] = (1.0, 1.0),
    renderer: PatchRenderer | None = None,
) -> Scenes:
    """The annotated signs of one ``shape`` ("octagon", "diamond-l", ...) in the file reap_annotations.csv
    (Hingun et al., 2022, arXiv:2212.05680) that lie on ``images``, by file name, all of one size.

    Of each row: filename, final_shape, tgt_points [[x, y], ...], and the coefficients that the renderer's relighting
    reads, percentile_coeffs, polynomial_coeffs or color_transfer_coeffs [[alpha, beta], ...]. Key points are multiplied
    by ``scale`` (x, y), where images are smaller than annotated. Raises InputError for unreadable files, columns that
    are absent, values that are no such lists, shapes without a row, and images of several sizes.
    """
    path, renderer = Path(path), renderer or PatchRenderer()
    rows = [row for row in _rows(path, renderer.relight) if row["final_shape"] == shape and row["filename"] in images]
    if not rows:
        raise InputError(f"{path}: no {shape!r} on the {len(images)} images given; expected at least one")
    names = list(dict.fromkeys(row["filename"] for row in rows))
    if len({images[name].shape for name in names}) > 1:
        raise InputError(f"{path}: images of several sizes; expected one")
    points = [_numbers(path, row, "tgt_points", None) for row in rows]
    if len({len(p) for p in points}) > 1 or len(points[0]) not in (3, 4):
        raise InputError(f"{path}: signs of {shape!r} with {sorted({len(p) for p in points})} points; expected 3 or 4")
    if renderer.relight == "none":
        light = torch.tensor((1.0, 0.0)).expand(len(rows), 1, 2)
    else:
        column, channels = COLUMNS[renderer.relight], CHANNELS[renderer.relight]
        light = torch.tensor([_numbers(path, row, column, channels) for row in rows])
    return Scenes(
        torch.stack([images[name] for name in names]),
        torch.tensor(points, dtype=torch.float64) * torch.tensor(scale, dtype=torch.float64),
        light,
        torch.tensor([names.index(row["filename"]) for row in rows]),
        torch.full((len(rows),), label, dtype=torch.int64),
        mask,
        obj_mask,
        renderer=renderer,
    )


def _rows(path: Path, method: str) -> list[dict[str, str]]:
    if method != "none" and method not in COLUMNS:
        raise InputError(f"{path}: holds no coefficients of {method!r}; expected none, {', '.join(COLUMNS)}")
    needed = {"filename", "final_shape", "tgt_points"} | ({COLUMNS[method]} if method != "none" else set())
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected reap_annotations.csv") from error
    lacking = needed - names
    if lacking:
        raise InputError(f"{path}: no column {sorted(lacking)[0]!r}; expected the columns of reap_annotations.csv")
    return rows


def _numbers(path: Path, row: dict[str, str], column: str, count: int | None) -> list[list[float]]:
    """The pairs of numbers of a cell."""
    where = f"{path}: {column} of {row['filename']}"
    try:
        pairs: Any = json.loads(row[column])
        found = [[float(v) for v in pair] for pair in pairs]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{where} is {row[column]!r}; expected a list of pairs of numbers") from error
    if any(len(pair) != 2 for pair in found) or (count is not None and len(found) != count):
        raise InputError(f"{where} has {len(found)} entries; expected {count or 'some'} pairs")
    return found
