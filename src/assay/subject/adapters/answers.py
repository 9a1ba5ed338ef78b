"""What a model that can only be asked answers, and how that becomes logits for the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import log_softmax

from assay.runtime.errors import InputError

Meaning = Literal["probabilities", "logits", "margins", "labels"]
SMALLEST = 1e-12  # what a probability of zero counts as
ROUNDED = 0.005  # of each probability: many answer two digits, or in bfloat16
SUMMED = 0.05  # of their sum, at most


@dataclass(frozen=True)
class Answers:
    """How the answers of one model are read.

    ``meaning``: probabilities; logits (whose softmax is meant to be one); margins (scores whose order is meant and no
    more); labels (integers from 0, or names of ``classes``). ``columns`` holds the class of each column (None: one a
    class, in order). ``numbered``: labels are numbers from 0 (True) or names (False); None reads it off each batch.
    ``where`` opens error messages and holds no more than the name of a file.
    """

    where: str
    meaning: Meaning
    classes: tuple[str, ...]
    columns: tuple[int, ...] | None = None
    numbered: bool | None = None

    def logits(self, raw: Any, n: int) -> np.ndarray:
        """Logits (n, c) float32 from raw answers: labels become a one in their column, probabilities their logarithm.

        One score a sample, where there are two classes, is the probability or the log-odds of the second. Of labels
        that come as rows of scores, or as one of two classes, the highest counts.
        """
        table = np.atleast_1d(table_of(raw, self.where))
        if len(table) != n:
            raise InputError(f"{self.where}: {len(table)} answers to {n} samples; expected one each")
        if self.meaning == "labels":
            return np.eye(len(self.classes), dtype=np.float32)[self._decided(table)]
        scores = self._scores(table)
        if self.meaning == "probabilities":
            if scores.min() < -ROUNDED or not _sum_to_one(scores):
                raise InputError(f"{self.where}: answers are no probabilities any more; expected what it gave before")
            scores = np.log(np.maximum(scores, SMALLEST))
        return self._placed(scores).astype(np.float32)

    def _decided(self, table: np.ndarray) -> np.ndarray:
        if table.ndim == 2 and table.shape[1] > 1:
            found = self._scores(table).argmax(1)
            return found if self.columns is None else np.array(self.columns)[found]
        flat = _whole(table.reshape(-1))
        if flat.dtype.kind == "f" and len(self.classes) == 2 and flat.min() >= 0 and flat.max() <= 1:
            flat = (flat > 0.5).astype(np.int64)
        return class_indices(flat, self.classes, self.where, self.numbered)

    def _scores(self, table: np.ndarray) -> np.ndarray:
        """Columns for all classes of the model, float64."""
        width = len(self.classes) if self.columns is None else len(self.columns)
        if table.dtype.kind not in "fiub":
            raise InputError(f"{self.where}: answers are {table.dtype}; expected numbers, scores of {width} classes")
        scores = table.astype(np.float64).reshape(len(table), -1)
        if scores.shape[1] == 1 and width == 2:
            scores = np.hstack([1 - scores, scores] if self.meaning == "probabilities" else [-scores / 2, scores / 2])
        if scores.shape[1] != width:
            shape = tuple(table.shape[1:])
            raise InputError(f"{self.where}: answers of shape {shape} a sample; expected scores of {width} classes")
        if not np.isfinite(scores).all():
            raise InputError(f"{self.where}: answers with NaN or infinite scores; expected finite ones")
        return scores

    def _placed(self, scores: np.ndarray) -> np.ndarray:
        """Columns in the order of the data's classes; one that the model does not know is all but impossible."""
        if self.columns is None:
            return scores
        if len(self.columns) < len(self.classes):
            scores = log_softmax(scores, axis=1)
        placed = np.full((len(scores), len(self.classes)), np.log(SMALLEST))
        placed[:, list(self.columns)] = scores
        return placed


def table_of(raw: Any, where: str) -> np.ndarray:
    """Answers as one array, objects that are all strings as strings; InputError for rows of several lengths."""
    try:
        table = np.asarray(raw)
    except ValueError as error:
        raise InputError(f"{where}: answers are rows of several lengths; expected one form, always") from error
    if table.dtype == object and table.size and all(isinstance(v, str) for v in table.flat):
        return table.astype(str)
    return table


def one_hot(table: np.ndarray) -> bool:
    """Whether every row of a table (n, c) holds a single one among zeros: a decision, whatever it is called."""
    if table.ndim != 2 or table.shape[1] < 2 or table.dtype.kind not in "fiub":
        return False
    return bool(np.isin(table, (0, 1)).all() and (table.sum(1) == 1).all())


def meaning_of(raw: Any, classes: int, where: str) -> Meaning:
    """What the answers to some samples are, read off their form.

    Integers, booleans or strings (n,), rows of zeros with a single one, and for two classes floats (n,) that are all 0
    or 1, are labels. Other floats (n, c), or (n,) for two classes, are probabilities where they are non-negative and
    sum to one (one float: where it lies in [0, 1]).
    """
    table = table_of(raw, where)
    if table.ndim == 2 and table.shape[1] == 1:
        table = table[:, 0]
    if table.dtype.kind in "iubUS" and table.ndim == 1:
        return "labels"
    if table.dtype.kind not in "fiu" or table.ndim not in (1, 2) or (table.ndim == 1 and classes != 2):
        raise InputError(
            f"{where}: answers are {table.dtype} of shape {table.shape}; expected scores (n, {classes}) or integer "
            "labels (n,)"
        )
    if table.ndim == 1 and np.isin(table, (0, 1)).all():
        return "labels"
    if table.ndim == 1:
        return "probabilities" if table.min() >= 0 and table.max() <= 1 else "logits"
    if one_hot(table):
        return "labels"
    return "probabilities" if table.min() >= 0 and _sum_to_one(table) else "logits"


def _sum_to_one(table: np.ndarray) -> bool:
    """Whether the rows of (n, c) sum to one but for rounding."""
    off = np.abs(table.astype(np.float64).sum(1) - 1)
    return bool(off.max() <= min(ROUNDED * table.shape[1], SUMMED))


def class_indices(
    values: Sequence[Any] | np.ndarray, classes: tuple[str, ...], where: str, numbered: bool | None = None
) -> np.ndarray:
    """The index of each of the data's ``classes`` that a model names: by its name, else by its number from 0.

    ``numbered`` allows the one (False) or the other (True) only.
    """
    numbers = _whole(np.asarray(values))
    found = np.unique(numbers)
    if not numbered and all_named(numbers, classes):
        known = {name: k for k, name in enumerate(classes)}
        return np.array([known[str(v)] for v in numbers], dtype=np.int64)
    within = numbers.dtype.kind in "iub" and 0 <= numbers.min(initial=0) <= numbers.max(initial=0) < len(classes)
    if numbered is not False and within:
        return numbers.astype(np.int64)
    if numbered and numbers.dtype.kind in "iub":
        raise InputError(f"{where}: label {found[-1] if found[0] >= 0 else found[0]}; expected 0 to {len(classes) - 1}")
    strange = next(v for v in found if str(v) not in classes)
    raise InputError(f"{where}: class {str(strange)!r} is none of the data's ({', '.join(classes[:12])})")


def all_named(values: Sequence[Any] | np.ndarray, classes: tuple[str, ...]) -> bool:
    """Whether all ``values`` are names of ``classes``."""
    return all(str(v) in classes for v in np.unique(_whole(np.asarray(values))))


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Floats that are whole numbers as integers, all else as it is."""
    return numbers.astype(np.int64) if numbers.dtype.kind == "f" and (numbers == np.trunc(numbers)).all() else numbers
