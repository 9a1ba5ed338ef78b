"""Splits of a subject that mean the same by a label: classes are matched by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject.subject import Subject

SPLITS = ("train", "holdout", "test")


def aligned(subject: Subject) -> Subject:
    """The subject with splits of the same classes, and bounds of what it is fitted on that hold all its splits.

    The classes are those of ``test``, or of the split that goes on from them (classes "0" to "8" of "0" to "9").
    A split with the same names in another order gets other labels. InputError names both where the names differ.
    """
    splits = {s: d for s in SPLITS if (d := getattr(subject, s)) is not None}
    classes = subject.test.classes
    for data in splits.values():
        if len(data.classes) > len(classes) and data.classes[: len(classes)] == classes:
            classes = data.classes
    low, high = (pick(d.bounds[k] for d in splits.values()) for k, pick in enumerate((min, max)))
    changed: dict[str, Any] = {}
    for name, data in splits.items():
        given = _renamed(data, classes, subject.test.name)
        if name != "test" and given.bounds != (low, high):
            given = replace(given, bounds=(low, high))
        if given is not data:
            changed[name] = given
    return replace(subject, **changed) if changed else subject


def _renamed(data: Data, classes: tuple[str, ...], other: str) -> Data:
    if data.classes == classes:
        return data
    if data.classes == classes[: len(data.classes)]:
        return replace(data, classes=classes)
    if sorted(data.classes) == sorted(classes) and len(set(classes)) == len(classes):
        place = torch.tensor([classes.index(c) for c in data.classes])
        return replace(data, classes=classes, y=place[data.y])
    raise InputError(f"data {data.name!r}: classes {_few(data.classes)}; expected {_few(classes)}, as in {other!r}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
