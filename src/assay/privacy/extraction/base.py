"""The contract of model extraction without data: a victim that answers queries, a budget, a clone's architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject.access import Access, Oracle

Victim = Callable[[Tensor], Tensor]
Evaluate = Callable[["ExtractionResult"], Mapping[str, float]]


class CloneEnsemble(nn.Module):
    """Clones that vote: the logarithm of the mean of their softmax outputs, (n, c)."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        logs = torch.stack([member(x).log_softmax(1) for member in self.members])
        return logs.logsumexp(0) - torch.tensor(float(len(self.members))).log()


@dataclass(frozen=True)
class ExtractionResult:
    """What an extraction gives.

    clone: maps inputs to logits (n, k). labels_seen (k,): the victim's label for each output. queries: samples the
    victim was asked. history: one row an iteration: queries, the mean difficulty of the pool and of what was asked of
    it, classes known, the entropy of all answers so far in nats; and what ``evaluate`` gave, where it was asked.
    """

    clone: nn.Module
    queries: int
    labels_seen: Int[Tensor, " k"]
    history: tuple[Mapping[str, float], ...] = ()

    def predict(self, x: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
        """The clone's decisions in the victim's labels."""
        return self.labels_seen[predict(self.clone, x).argmax(1)]

    def to_frame(self) -> Any:
        """The history as a pandas data frame."""
        import pandas

        return pandas.DataFrame(list(self.history))


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """``extract(victim, clone, shape, *, budget, seed) -> ExtractionResult``.

    victim: a callable of samples (n, *shape) in [0, 1] that gives labels (n,) or probabilities (n, c), or an Oracle;
    every sample it is asked counts, and at most ``budget`` are. clone: a network whose architecture, not whose weights,
    is used; where ``num_classes`` is None it needs a ``body`` and a linear ``head``, as those of assay.nets have.
    ``soft`` uses probabilities, else only decisions. ``evaluate`` looks at the clone ``looks`` times on the way, at no
    cost. Nothing given is changed. InputError for unusable options and answers.
    """

    kind: ClassVar[str] = "extractor"
    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.DECISION

    num_classes: int | None = None
    soft: bool = False
    looks: int = 5

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 2:
            raise InputError(f"{type(self).__name__}: num_classes is {self.num_classes}; expected at least 2, or None")

    def extract(
        self,
        victim: Victim | Oracle,
        clone: nn.Module,
        shape: tuple[int, int, int],
        *,
        budget: int,
        seed: int,
        evaluate: Evaluate | None = None,
    ) -> ExtractionResult:
        """A clone of ``victim``."""
        raise TypeError(f"{type(self).__name__} states no extraction")

    def ask(self, oracle: Oracle, x: Float[Tensor, "n ..."]) -> Tensor:
        """Checked answers: labels (n,) int64, or probabilities (n, c) where ``soft``."""
        where, out = type(self).__name__, oracle(x)
        if self.soft:
            return self._probabilities(out, len(x))
        if out.shape == (len(x),) and not out.is_floating_point():
            labels = out.long()
        elif out.dim() == 2 and len(out) == len(x) and torch.isfinite(out).all():
            labels = out.argmax(1)
        else:
            given = f"{out.dtype} of shape {tuple(out.shape)}"
            raise InputError(f"{where}: the victim gives {given}; expected labels ({len(x)},) or finite ({len(x)}, c)")
        top = int(labels.max())
        if self.num_classes is not None and (top >= self.num_classes or int(labels.min()) < 0):
            raise InputError(f"{where}: the victim gives label {top}; expected 0 to {self.num_classes - 1}")
        return labels

    def _probabilities(self, out: Tensor, n: int) -> Tensor:
        columns = self.num_classes or (out.shape[1] if out.dim() == 2 else 0)
        right = out.is_floating_point() and out.shape == (n, columns) and bool(torch.isfinite(out).all())
        if not right or bool((out < 0).any()) or bool(((out.sum(1) - 1).abs() > 1e-3).any()):
            given = f"{out.dtype} of shape {tuple(out.shape)}"
            raise InputError(
                f"{type(self).__name__}: the victim gives {given}; expected probabilities ({n}, {columns or 'c'})"
            )
        return out


def agreement(result: ExtractionResult, labels: Int[Tensor, " n"], x: Float[Tensor, "n ..."]) -> float:
    """The share of ``x`` on which the clone decides as ``labels``: the victim's decisions, or the truth."""
    return float((result.predict(x) == labels).float().mean())
