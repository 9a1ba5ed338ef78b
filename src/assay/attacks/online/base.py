"""The contract of pickers, and the engine that shows a stream's values to an online one, item by item."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Picker:
    """Picks ``k`` of ``n`` values, of which larger ones are wanted: ``pick(values) -> mask``.

    Raises InputError unless 1 <= k <= n.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    n: int
    k: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise InputError(f"{type(self).__name__}: k={self.k} of n={self.n}; expected 1 <= k <= n")

    def pick(self, values: Float[Tensor, "*runs n"]) -> Bool[Tensor, "*runs n"]:
        """Which values of each run are picked; runs do not affect each other. InputError for other shapes and NaN."""
        raise TypeError(f"{type(self).__name__} states no pick")

    def checked(self, values: Tensor) -> Float[Tensor, "runs n"]:
        """The values as float64 runs, once they are known to be finite and n a run."""
        where = type(self).__name__
        if values.dim() < 1 or values.shape[-1] != self.n:
            raise InputError(f"{where}: values have shape {tuple(values.shape)}; expected {self.n} values a run")
        if not torch.isfinite(values).all():
            raise InputError(f"{where}: values hold NaN or infinity; expected finite numbers")
        return values.detach().cpu().double().reshape(-1, self.n)


@dataclass(frozen=True, kw_only=True)
class OnlinePicker(Picker):
    """Sees each value once and decides at once: the k-secretary problem of arXiv:2103.02014.

    Sampling phase: the first ``threshold`` items (t of them, None: the rule's own) are observed and none is picked.
    Selection phase: an item is picked where the rule ``wants`` it and fewer than k are picked. References are the k
    largest values observed so far, or only sampled where ``learns`` is False; until there are k they count as minus
    infinity, as they do where t < k. Comparisons are strict: of equal values the earlier ranks higher. ``exhaust``:
    in the selection phase, as many items as picks left are all picked. Raises InputError unless 0 <= threshold <= n.
    """

    contract: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    threshold: int | None = None
    exhaust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t <= self.n:
            where = type(self).__name__
            raise InputError(f"{where}: threshold={self.threshold} of n={self.n}; expected 0 <= threshold <= n")

    @property
    def t(self) -> int:
        """How many items are sampled."""
        return self.default_threshold() if self.threshold is None else self.threshold

    def default_threshold(self) -> int:
        """n / e, rounded down."""
        return math.floor(self.n / math.e)

    def wants(self, stream: Stream, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        """Whether the present value of each run is good enough, by what the stream has shown before it."""
        raise TypeError(f"{type(self).__name__} states no rule")

    def stream(self, runs: int = 1) -> Stream:
        """A new stream of n items, or ``runs`` of them side by side."""
        return Stream(self, runs)

    def pick(self, values: Float[Tensor, "*runs n"]) -> Bool[Tensor, "*runs n"]:
        flat = self.checked(values)
        stream = self.stream(len(flat))
        return torch.stack([stream.step(column) for column in flat.unbind(1)], 1).reshape(values.shape)


class Stream:
    """Independent runs of one rule in lock-step; with one run, ``observe(value) -> bool`` item by item.

    ``best`` (runs, k) float64: the references, largest first; ``arrival`` (runs, k): when each was seen, from 0, and
    -1 for those that are missing; ``count``: items seen; ``picks`` (runs,): items picked.
    """

    def __init__(self, rule: OnlinePicker, runs: int = 1) -> None:
        if runs < 1:
            raise InputError(f"stream of {type(rule).__name__}: {runs} runs; expected at least 1")
        self.rule, self.runs = rule, runs
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next value is the first again."""
        self.count = 0
        self.best = torch.full((self.runs, self.rule.k), -math.inf, dtype=torch.float64)
        self.arrival = torch.full((self.runs, self.rule.k), -1)
        self.picks = torch.zeros(self.runs, dtype=torch.int64)
        self.selected: list[int] = []

    def observe(self, value: float) -> bool:
        """Whether the present item is picked; ``selected`` holds the positions so far. One run only."""
        if self.runs != 1:
            raise InputError(f"observe: the stream has {self.runs} runs; expected one (step takes several)")
        taken = bool(self.step(torch.tensor([value], dtype=torch.float64)))
        if taken:
            self.selected.append(self.count - 1)
        return taken

    def step(self, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        """Whether the present item of each run is picked. InputError after n items, and for NaN or infinity."""
        rule, where = self.rule, f"stream of {type(self.rule).__name__}"
        if self.count >= rule.n:
            raise InputError(f"{where}: item {self.count + 1}; expected n={rule.n} items")
        if values.shape != (self.runs,) or not torch.isfinite(values).all():
            raise InputError(f"{where}: item {self.count + 1} is {values}; expected finite values ({self.runs},)")
        sampling = self.count < rule.t
        taken = torch.zeros(self.runs, dtype=torch.bool)
        if not sampling:
            taken = rule.wants(self, values)
            if rule.exhaust:
                taken = taken | (rule.n - self.count <= rule.k - self.picks)
            taken = taken & (self.picks < rule.k)
            self.picks += taken
        if sampling or rule.learns:
            self._insert(values[:, None])
        self.count += 1
        return taken

    def _insert(self, value: Float[Tensor, "runs 1"]) -> None:
        """Put each value behind the references that are not below it; the last reference falls out."""
        above = self.best >= value
        if bool(above.all()):
            return
        first = above.sum(1, keepdim=True)
        place = torch.arange(self.rule.k)
        source = torch.where(place > first, place - 1, place)
        here = place == first
        self.best = torch.where(here, value, self.best.gather(1, source))
        self.arrival = torch.where(here, self.count, self.arrival.gather(1, source))


def run_stream(values: Float[Tensor, " n"], algorithm: Picker) -> Int[Tensor, " m"]:
    """The positions, ascending, that ``algorithm`` picks of one stream of ``values`` (m <= k of them)."""
    if values.dim() != 1:
        raise InputError(f"run_stream: values have shape {tuple(values.shape)}; expected one stream (n,)")
    return torch.where(algorithm.pick(values))[0]
