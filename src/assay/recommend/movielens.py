"""MovieLens-100k as sequences of items."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError

GENRES = 19  # the last columns of u.item


@dataclass(frozen=True)
class Interactions:
    """Users' items in the order of time: sequences of int64 (t,) from 1 to n_items, as many ratings, genres (v, g)."""

    sequences: list[Int[Tensor, " t"]]
    ratings: list[Float[Tensor, " t"]]
    n_items: int
    meta: Float[Tensor, "v g"]


def load_movielens(*, least: int = 1, shortest: int = 5, folder: str | Path | None = None) -> Interactions:
    """The 100,000 ratings (Harper and Konstan, 2015) of movies with ``least`` ratings or more, renumbered from 1 on.

    Users with fewer than ``shortest`` of these are left out; equal times stay in the order of the file. Read from
    ``folder`` or ``$ASSAY_DATA/movielens100k`` (u.data, u.item). Raises InputError where they are not there.
    """
    root = Path(folder) if folder is not None else Path(os.environ.get("ASSAY_DATA", "")) / "movielens100k"
    data, described = root / "u.data", root / "u.item"
    if not data.is_file() or not described.is_file():
        raise InputError(f"MovieLens: no u.data and u.item in {str(root)!r}; expected them there (set ASSAY_DATA)")
    table = np.loadtxt(data, dtype=np.int64)
    movies, counts = np.unique(table[:, 1], return_counts=True)
    kept = movies[counts >= least]
    table = table[np.isin(table[:, 1], kept)]
    number = np.searchsorted(kept, table[:, 1]) + 1
    order = np.lexsort((np.arange(len(table)), table[:, 3], table[:, 0]))
    cuts = np.flatnonzero(np.diff(table[order, 0])) + 1
    rows = [part for part in np.split(order, cuts) if len(part) >= shortest]
    meta = torch.zeros(len(kept) + 1, GENRES)
    place = {int(movie): k + 1 for k, movie in enumerate(kept)}
    for line in described.read_text(encoding="latin-1").splitlines():
        cells = line.split("|")
        if int(cells[0]) in place:
            meta[place[int(cells[0])]] = torch.tensor([float(c) for c in cells[-GENRES:]])
    return Interactions(
        [torch.from_numpy(number[part]) for part in rows],
        [torch.from_numpy(table[part, 2]).float() for part in rows],
        len(kept),
        meta,
    )
