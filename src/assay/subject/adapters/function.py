"""Any Python function as a subject."""

from __future__ import annotations

import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch

from assay.data import Data
from assay.runtime.errors import BudgetError, InputError
from assay.subject.access import Access
from assay.subject.adapters.answers import Meaning
from assay.subject.adapters.base import PROBE, black_box
from assay.subject.subject import Subject


class Budget:
    """The samples that a model may be asked about, counted over all processes that it travels to.

    ``take(n)`` raises BudgetError where fewer than n are left, before they are asked. It is no part of a model's
    options.
    """

    __slots__ = ("__weakref__", "most", "path")

    def __init__(self, most: int, path: str | None = None) -> None:
        if most < 1:
            raise InputError(f"budget={most}; expected at least one query")
        self.most = most
        if path is None:
            handle, path = tempfile.mkstemp(prefix="assay-budget-")
            os.close(handle)
            weakref.finalize(self, _remove, path, os.getpid())
        self.path = path

    def take(self, n: int) -> None:
        """Count n samples as asked; none where fewer are left."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed; the file's size counts for all processes
            left = self.most - os.fstat(handle).st_size
            if n > left:
                raise BudgetError(
                    f"the budget of {self.most} queries is spent ({n} more were asked for, {left} are left)"
                )
            os.write(handle, bytes(n))
        finally:
            os.close(handle)

    def __reduce__(self) -> tuple[Any, ...]:
        return Budget, (self.most, self.path)


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)


class _Asked:
    """A function as an adapter's ``ask``. What the function holds counts in the model's identity."""

    def __init__(self, function: Callable[[Any], Any], takes: str, budget: Budget | None) -> None:
        self.function, self.takes, self.budget = function, takes, budget

    def __call__(self, x: np.ndarray) -> Any:
        if self.budget is not None:
            self.budget.take(len(x))
        x = x.copy()  # a function that works in place must not change the data
        out = self.function(torch.from_numpy(x) if self.takes == "tensor" else x)
        if not isinstance(out, torch.Tensor):
            return out
        return (out.float() if out.dtype == torch.bfloat16 else out).detach().cpu().numpy()  # NumPy has no bfloat16


def from_callable(
    function: Callable[[Any], Any],
    data: Data,
    *,
    holdout: Data | None = None,
    train: Data | None = None,
    access: Access | None = None,
    scores: Literal["probabilities", "logits", "margins"] | None = None,
    takes: Literal["array", "tensor"] = "array",
    budget: int | None = None,
    name: str | None = None,
) -> Subject:
    """A subject from any function that maps samples x (n, ...) in the data's units to answers.

    The function is given a float32 numpy array (``takes="tensor"``: a torch tensor) and returns scores (n, c), for two
    classes also (n,) of the second, or labels (n,): integers from 0 or names of ``data.classes``. Scores are taken for
    probabilities where those of the first 64 samples are non-negative and sum to one (but for rounding to two digits),
    for decisions where each of their rows is a single one among zeros, or the one score 0 or 1, else for logits;
    ``scores`` says it outright.
    ``access=Access.DECISION`` uses the decisions only, even of a function that gives scores. ``budget`` is the most
    samples that are asked in all: a property that would go beyond is left out of the audit and says so. Raises
    InputError for unknown options, for a function that fails and for answers of another form.
    """
    if access not in (None, Access.DECISION, Access.SCORE):
        raise InputError(f"from_callable: access={access}; expected Access.DECISION or Access.SCORE")
    for what, given, known in (("scores", scores, get_args(Meaning)[:3]), ("takes", takes, ("array", "tensor"))):
        if given is not None and given not in known:
            raise InputError(f"from_callable: {what}={given!r}; expected {' or '.join(map(repr, known))}")
    where = name or f"function {getattr(function, '__qualname__', type(function).__name__)}"
    count = Budget(budget) if budget is not None else None
    meaning: Meaning | None = scores
    subject = black_box(
        _Asked(function, takes, count),
        {"test": data, "holdout": holdout, "train": train},
        where=where,
        digest="",
        meaning=meaning,
        probe=PROBE if budget is None else min(PROBE, max(budget // 10, 2)),
    )
    if access is None or access == subject.access:
        return subject
    if access == Access.SCORE:
        raise InputError(f"{where}: gives labels; expected scores for Access.SCORE")
    return subject.with_model(subject.model, access=Access.DECISION)
