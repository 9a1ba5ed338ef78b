"""The contract of unlearners, and the choice of what is forgotten."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import AccessError, InputError, unknown
from assay.subject import Access, Subject
from assay.training import State, Trainer
from assay.training.engine import Hook
from assay.unlearn.forget_sets import from_spec


@dataclass(frozen=True, kw_only=True)
class Unlearner:
    """``forget(subject, forget, retain, *, seed) -> model``: a copy that should know nothing of ``forget``.

    ``forget`` and ``retain`` are disjoint parts of the subject's training data. ``control`` is the same work on all of
    them without the method's ingredient. Raises AccessError where the subject does not grant its weights or has no
    training data, InputError where the two sets overlap or were not trained on.
    """

    kind: ClassVar[str] = "unlearner"
    contract: ClassVar[bool] = True

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """A model without ``forget``."""
        raise TypeError(f"{type(self).__name__} does not forget")

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The same work, nothing forgotten."""
        raise TypeError(f"{type(self).__name__} has no control")

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """The model after every epoch, the last as ``forget`` gives it; that one alone where there are no epochs."""
        return [self.forget(subject, forget, retain, seed=seed)]

    def check(self, subject: Subject, forget: Data, retain: Data) -> Data:
        """The training data, after the checks that all unlearners make."""
        who = type(self).__name__
        subject.grants(Access.WEIGHTS, who)
        train = subject.training(who)
        for name, part in (("forget", forget), ("retain", retain)):
            check_inputs(f"{who}: {name}", part.x, part.y, train.bounds)
            strange = int((~torch.isin(part.index, train.index)).sum())
            if strange:
                raise InputError(
                    f"{who}: {strange} of the {len(part)} samples to {name} are not in {train.name!r}; "
                    "expected parts of the training data"
                )
        both = int(torch.isin(forget.index, retain.index).sum())
        if both:
            raise InputError(f"{who}: {both} samples are in both sets; expected forget and retain to be disjoint")
        return train


def keep_at(steps: Collection[int], kept: list[nn.Module]) -> Hook:
    """A hook of training that appends a copy of the model to ``kept`` after each of ``steps``, in evaluation mode."""

    def keep(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step in steps:
            kept.append(copy.deepcopy(models["model"]).eval())
            kept[-1].zero_grad(set_to_none=True)

    return keep


def together(train: Data, forget: Data, retain: Data) -> Data:
    """The training samples of both sets, in the order of the training data."""
    return train[torch.isin(train.index, torch.cat([forget.index, retain.index]))]


def joined(forget: Data, retain: Data) -> Data:
    """Both sets in one, what is to be forgotten first."""
    x, y, index = (torch.cat([getattr(part, k) for part in (forget, retain)]) for k in ("x", "y", "index"))
    fields = {k: torch.cat([v, retain.fields[k]]) for k, v in forget.fields.items()}
    return replace(forget, x=x, y=y, index=index, fields=fields)


def recipe_of(subject: Subject, who: str) -> Trainer:
    """How the subject was trained, or AccessError."""
    if subject.recipe is None:
        raise AccessError(f"{who} needs the training recipe; the subject has none")
    return subject.recipe


def forget_set(train: Data, spec: str) -> tuple[Data, Data]:
    """``train`` in two parts: what is to be forgotten, and the rest.

    ``spec`` is "class=NAME" (a class's name, else its number from 0), "random=SHARE", "subclass=CLASS:CLUSTER" (0 the
    largest of four clusters of a class), "FIELD=VALUE" for a field of the data (groups, marks of poisoned samples), or
    the path of a text file with one sample index a line (blank lines are skipped). Raises InputError where it names no
    sample, an unknown one, one twice, or all.
    """
    kind, equals, name = spec.partition("=")
    if equals and (found := from_spec(train, kind, name)) is not None:
        return found
    if equals and kind == "class":
        chosen = train.y == _class(train, name)
        if not chosen.any():
            raise InputError(f"forget {spec!r}: {train.name!r} has no sample of this class; expected at least one")
    else:
        chosen = torch.isin(train.index, torch.tensor(_indices(train, Path(spec).expanduser())))
    if chosen.all():
        raise InputError(f"forget {spec!r}: names all {len(train)} training samples; expected some to be retained")
    return train[chosen], train[~chosen]


def _class(train: Data, name: str) -> int:
    if name in train.classes:
        return train.classes.index(name)
    if re.fullmatch(r"[0-9]{1,9}", name) and int(name) < len(train.classes):
        return int(name)
    raise unknown("class to forget", name, train.classes)


def _indices(train: Data, path: Path) -> list[int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise InputError(
            f"forget {str(path)!r}: {reason}; expected class=NAME, random=SHARE, subclass=CLASS:CLUSTER, FIELD=VALUE "
            "or a text file with one index a line"
        ) from error
    known = set(train.index.tolist())
    found: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise InputError(f"{path}, line {number}: {text[:40]!r} is not an integer; expected a sample index")
        index = int(text)
        if index not in known:
            raise InputError(f"{path}, line {number}: no sample {index} in {train.name!r}; expected a training index")
        if index in found:
            raise InputError(f"{path}, line {number}: {index} is on line {found[index]} already; expected it once")
        found[index] = number
    if not found:
        raise InputError(f"{path}: names no sample; expected at least one index")
    return list(found)
