"""The contract of attacks: goals, results, and what every attack promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import BATCH, device_of, evaluating, ordinary, traceable
from assay.subject.access import Access, Oracle

Model = nn.Module | Oracle


@dataclass(frozen=True)
class Goal:
    """What an attack is after, one row a sample. ``margin(logits)`` is positive where the goal is met."""

    def labels(self) -> Tensor:
        """The labels that the goal names, (n,) or (n, k)."""
        value: Tensor = getattr(self, fields(self)[0].name)
        return value

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        """Raise InputError unless there is one row of valid int64 labels a sample."""
        check_labels(where, self.labels(), n, classes)

    def select(self, rows: Tensor | slice) -> Goal:
        """The goal of the samples that ``rows`` selects."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device) -> Goal:
        """The same goal on ``device``."""
        return replace(self, **{f.name: ordinary(getattr(self, f.name)).to(device) for f in fields(self)})

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        """Whether logits (n, c), or decisions (n,), meet the goal."""
        raise TypeError(f"{type(self).__name__} states no criterion")

    def margin(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """By how much the goal is met; negative where it is not."""
        raise TypeError(f"{type(self).__name__} states no margin")

    def likelihood(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """A smooth measure that grows as the goal gets likelier: what a cross-entropy attack climbs."""
        raise TypeError(f"{type(self).__name__} states no likelihood")


def _rivals(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with those of ``labels`` (n,) or (n, k) put to minus infinity."""
    return logits.scatter(1, labels.reshape(len(logits), -1), float("-inf"))


def _own(logits: Tensor, label: Tensor) -> Tensor:
    return logits.gather(1, label[:, None])[:, 0]


@dataclass(frozen=True)
class Untargeted(Goal):
    """Any class but ``y`` (n,).

    Its likelihood is the log-odds log((1 - p_y) / p_y). Cross-entropy is a growing function of it, so their gradients
    point the same way; but where p_y rounds to 1 the cross-entropy's gradient is lost and that of the log-odds is not.
    """

    y: Int[Tensor, " n"]

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return (outputs.argmax(1) if outputs.dim() == 2 else outputs) != self.y

    def margin(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _rivals(logits, self.y).amax(1) - _own(logits, self.y)

    def likelihood(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _rivals(logits, self.y).logsumexp(1) - _own(logits, self.y)


@dataclass(frozen=True)
class Targeted(Goal):
    """The class ``t`` (n,). Its likelihood is the log-odds of t (see Untargeted)."""

    t: Int[Tensor, " n"]

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return (outputs.argmax(1) if outputs.dim() == 2 else outputs) == self.t

    def margin(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _own(logits, self.t) - _rivals(logits, self.t).amax(1)

    def likelihood(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _own(logits, self.t) - _rivals(logits, self.t).logsumexp(1)


@dataclass(frozen=True)
class Toward(Goal):
    """Any class but ``y`` (n,), sought by way of the class ``t`` (n,): it is met by whatever is not y.

    Its margin z_t - z_y and its likelihood log p_t are what the targeted runs of AutoAttack climb (Croce and Hein,
    2020, arXiv:2003.01690, section 5).
    """

    y: Int[Tensor, " n"]
    t: Int[Tensor, " n"]

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        check_labels(where, self.y, n, classes)
        check_labels(where, self.t, n, classes)

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return (outputs.argmax(1) if outputs.dim() == 2 else outputs) != self.y

    def margin(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _own(logits, self.t) - _own(logits, self.y)

    def likelihood(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return Targeted(self.t).likelihood(logits)


@dataclass(frozen=True)
class Ordered(Goal):
    """The k largest logits are those of ``targets`` (n, k), in this order (Zhang and Wu, 2020, arXiv:2007.12684).

    Its likelihood is that of the order under the Plackett-Luce model: a sum of log-softmaxes over what is left.
    """

    targets: Int[Tensor, "n k"]

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        t = self.targets
        if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.dim() != 2 or len(t) != n or t.shape[1] < 1:
            shape = f"{t.dtype} of shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise InputError(f"{where}: ordered targets are {shape}; expected int64 of shape ({n}, k) with k >= 1")
        for column in t.unbind(1):
            check_labels(where, column, n, classes)
        if (t.sort(1).values.diff(dim=1) == 0).any():
            raise InputError(f"{where}: a row of ordered targets repeats a class; expected distinct classes")

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        if outputs.dim() == 1:
            if self.targets.shape[1] > 1:
                raise AccessError("an ordered goal needs SCORE access; the oracle grants DECISION")
            return outputs == self.targets[:, 0]
        return self.margin(outputs) > 0

    def margin(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        gaps = [
            _own(logits, self.targets[:, i]) - _rivals(logits, self.targets[:, : i + 1]).amax(1)
            for i in range(self.targets.shape[1])
        ]
        return torch.stack(gaps, 1).amin(1)

    def likelihood(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        total = torch.zeros_like(logits[:, 0])
        for i in range(self.targets.shape[1]):
            left = _rivals(logits, self.targets[:, :i]) if i else logits
            total = total - F.cross_entropy(left, self.targets[:, i], reduction="none")
        return total


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    x_adv (n, ...) in bounds; success (n,) whether x_adv meets the goal; distance (n,) the norm of x_adv - x that the
    attack works in (a minimum-norm attack that found nothing gives x back at distance infinity); queries and gradients
    (n,) int64, forward and backward passes spent on each sample. ``trace`` holds for each sample a (k, 2) tensor of
    (queries, best distance), one row an improvement; gradient attacks leave it empty. ``by`` is set by ensembles: the
    name of the member that broke each sample.
    """

    x_adv: Tensor
    success: Bool[Tensor, " n"]
    distance: Float[Tensor, " n"]
    queries: Int[Tensor, " n"]
    gradients: Int[Tensor, " n"]
    trace: tuple[Tensor, ...] = ()
    by: tuple[str, ...] = ()

    @classmethod
    def join(cls, parts: list[AttackResult]) -> AttackResult:
        """The results of several batches as one."""
        names = [f.name for f in fields(cls) if f.name not in ("trace", "by")]
        trace, by = tuple(t for p in parts for t in p.trace), tuple(b for p in parts for b in p.by)
        return cls(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names}, trace=trace, by=by)

    def to(self, device: torch.device) -> AttackResult:
        """The same result on ``device`` (the trace stays on the CPU)."""
        names = [f.name for f in fields(self) if f.name not in ("trace", "by")]
        return replace(self, **{n: getattr(self, n).to(device) for n in names})


@dataclass(frozen=True, kw_only=True)
class Attack:
    """``attack(model, x, y, seed=0) -> x_adv`` and ``attack.run(model, x, goal, seed=0) -> AttackResult``.

    x (n, ...) floats in ``bounds``; y (n,) int64. ``access`` is what an attack needs of the model; ``guarantee`` is
    "ball" (never leaves its ball) or "minimum-norm" (reports the smallest distance found). Either way x_adv stays in
    ``bounds``, and what lies up to 1e-6 outside of them is first brought onto them. The result of a sample depends on
    the seed and its ``index`` (its position where none is given), not on the batch that it is in. The caller may be in
    ``torch.no_grad`` or ``torch.inference_mode``. Raises InputError for unusable inputs or outputs.
    """

    kind: ClassVar[str] = "attack"
    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.GRADIENT
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            self.refuse("bounds", self.bounds, "(low, high) with low < high")

    def refuse(self, field: str, value: object, expected: str) -> None:
        """Raise InputError for an option of this attack."""
        raise InputError(f"{type(self).__name__}: {field} is {value}; expected {expected}")

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, seed: int, index: Tensor | None = None) -> Tensor:
        """Inputs that the model takes for something other than ``y``, where the attack finds them."""
        return self.run(model, x, Untargeted(y), seed=seed, index=index).x_adv

    def run(
        self,
        model: Model,
        x: Tensor,
        goal: Goal,
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
        batch_size: int = BATCH,
        start: Tensor | None = None,
    ) -> AttackResult:
        """Attack ``x`` in batches. ``start`` (as x): points to begin at, for attacks that use them; those that search
        for the nearest point need some that already meet the goal."""
        where = type(self).__name__
        check_inputs(where, x, None, self.bounds)
        if not isinstance(goal, Goal):
            raise InputError(f"{where}: goal is {type(goal).__name__}; expected Untargeted, Targeted or Ordered")
        goal.check(where, len(x))
        if start is not None:
            check_inputs(f"{where}: start", start, None, self.bounds)
            if start.shape != x.shape:
                raise InputError(f"{where}: start has shape {tuple(start.shape)}; expected {tuple(x.shape)}")
        if batch_size < 1:
            self.refuse("batch_size", batch_size, "at least 1")
        index = torch.arange(len(x)) if index is None else index
        check_labels(f"{where}: index", index, len(x))
        net = model.model if isinstance(model, Oracle) else model
        start = None if start is None else self.taken(start)
        if not isinstance(net, nn.Module):
            return self._batches(model, self.taken(x), goal, seed, index, batch_size, start, x.device)
        with traceable(where, net, x), evaluating(net):
            return self._batches(model, self.taken(x), goal, seed, index, batch_size, start, device_of(net))

    def taken(self, x: Tensor) -> Tensor:
        """Points as an attack takes them: in the bounds, without a graph."""
        x = ordinary(x.detach())
        return x.clamp(*self.bounds) if x.min() < self.bounds[0] or x.max() > self.bounds[1] else x

    def _batches(
        self,
        model: Model,
        x: Tensor,
        goal: Goal,
        seed: int,
        index: Tensor,
        size: int,
        start: Tensor | None,
        device: torch.device,
    ) -> AttackResult:
        parts = []
        for k in range(0, len(x), size):
            rows = slice(k, k + size)
            given = {} if start is None else {"start": ordinary(start[rows]).to(device)}
            inputs = x[rows].to(device)
            part = self.search(
                model, inputs, goal.select(rows).to(device), seed=seed, index=index[rows].to(device), **given
            )
            parts.append(part.to(x.device))
        return AttackResult.join(parts)

    def search(self, model: Any, x: Tensor, goal: Goal, *, seed: int, index: Tensor, **given: Tensor) -> AttackResult:
        """Attack one batch on the model's device, the model in evaluation mode without parameter gradients."""
        raise TypeError(f"{type(self).__name__} states no search")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The norm that distances are measured in."""
        raise TypeError(f"{type(self).__name__} states no norm")


@torch.no_grad()
def likeliest(where: str, model: nn.Module, x: Tensor, goal: Untargeted, k: int) -> Toward:
    """Goals toward each of the ``k`` likeliest wrong classes (all, where there are fewer), k rows a sample in a row."""
    logits = model(x)
    check_outputs(where, logits, goal)
    others = _rivals(logits, goal.y).topk(min(k, logits.shape[1] - 1), 1).indices
    return Toward(goal.y.repeat_interleave(others.shape[1]), others.flatten())


def spread_objective(logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
    """Difference of logits ratio (Croce and Hein, 2020, arXiv:2003.01690, eq. 6 and 7): scale- and shift-invariant.

    The margin over z1 - z3 (untargeted) or z1 - (z3 + z4) / 2 (otherwise), z sorted downwards. Needs 3 or 4 classes.
    """
    need = 3 if isinstance(goal, Untargeted) else 4
    if logits.shape[1] < need:
        raise InputError(f"dlr loss: the model has {logits.shape[1]} classes; expected at least {need}")
    top = logits.topk(need, 1).values
    low = top[:, 2] if need == 3 else (top[:, 2] + top[:, 3]) / 2
    return goal.margin(logits) / (top[:, 0] - low).clamp_min(1e-12)


def _likelihood(logits: Tensor, goal: Goal) -> Tensor:
    return goal.likelihood(logits)


def _margin(logits: Tensor, goal: Goal) -> Tensor:
    return goal.margin(logits)


OBJECTIVES: dict[str, Callable[[Tensor, Goal], Tensor]] = {
    "ce": _likelihood,
    "dlr": spread_objective,
    "margin": _margin,
}


def check_outputs(where: str, outputs: Tensor, goal: Goal) -> None:
    """Finite logits (n, c), c >= 2, or decisions (n,) that have the classes the goal names; else InputError."""
    n = len(goal.labels())
    if not isinstance(outputs, Tensor):
        raise InputError(f"{where}: the model gives {type(outputs).__name__}; expected a tensor of logits (n, c)")
    if outputs.dim() not in (1, 2) or len(outputs) != n or (outputs.dim() == 2 and outputs.shape[1] < 2):
        shape = f"shape {tuple(outputs.shape)} for {n} samples"
        raise InputError(f"{where}: the model gives {shape}; expected logits (n, c) of two classes or more")
    if outputs.is_floating_point() and not torch.isfinite(outputs).all():
        bad = int((~torch.isfinite(outputs)).flatten(1).any(1).sum())
        raise InputError(f"{where}: the model's outputs are not finite on {bad} of {len(outputs)} samples")
    if outputs.dim() == 2 and int(goal.labels().max()) >= outputs.shape[1]:
        top = int(goal.labels().max())
        raise InputError(f"{where}: labels go up to {top}; expected 0 to {outputs.shape[1] - 1}, as the model has them")
