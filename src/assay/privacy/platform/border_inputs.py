"""HSPI-BI: inputs on the border between two platforms, which answer them with different labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks import Goal, GradientAttack, Linf
from assay.attacks.balls import Ball
from assay.attacks.engine import Climb
from assay.privacy.platform.base import Identifier, winner
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating, predict
from assay.runtime.random import Draws, derive
from assay.subject.access import Oracle

Key = tuple[str, ...]
GAINS = ("ce", "gap")


class SideBySide(nn.Module):
    """The logits of several models, (n, models x c): those of the first, then those of the second, and so on."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n mc"]:
        return torch.cat([model(x.to(device_of(model))).to(x.device) for model in self.models], 1)


@dataclass(frozen=True)
class Border(Goal):
    """The first of ``members`` models gives another label than all the others, and those agree. ``rows`` (n,) int64."""

    rows: Int[Tensor, " n"]
    members: int

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        if len(self.rows) != n or self.members < 2:
            found = f"{len(self.rows)} rows, {self.members} models"
            raise InputError(f"{where}: the border has {found}; expected {n} rows and at least two models")

    def labels(self) -> Tensor:
        return torch.zeros_like(self.rows)

    def select(self, rows: Tensor | slice) -> Border:
        return replace(self, rows=self.rows[rows])

    def to(self, device: torch.device) -> Border:
        return replace(self, rows=self.rows.to(device))

    def each(self, outputs: Float[Tensor, "n mc"]) -> Float[Tensor, "n m c"]:
        """The logits model by model."""
        return outputs.unflatten(1, (self.members, -1))

    def met(self, outputs: Float[Tensor, "n mc"]) -> Bool[Tensor, " n"]:
        label = self.each(outputs).argmax(2)
        return (label[:, 0] != label[:, 1]) & (label[:, 1:] == label[:, 1:2]).all(1)


@dataclass(frozen=True, kw_only=True)
class BorderSearch(GradientAttack):
    """Signed ascent on the gain that unites the search for the border and for its far side; see BorderInputs.

    Every ``check_every`` steps, and at the end, the point as an 8-bit image is shown to the models; where it is a
    border input, it is kept and leaves the batch.
    """

    contract: ClassVar[bool] = True

    ball: Ball = Linf(1.0)
    steps: int = 400
    lr: tuple[float, float] = (1e-3, 1e-4)
    check_every: int = 20
    noise: float = 0.01
    quantize: bool = True
    gain: Literal["ce", "gap"] = "ce"

    def start(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        return Linf(self.noise).draw(x, draws)

    def objective(self, logits: Float[Tensor, "n mc"], goal: Goal) -> Float[Tensor, " n"]:
        each = cast(Border, goal).each(logits)
        if self.gain == "gap":
            top = each.topk(2, 2).values
            return -(top[..., 0] - top[..., 1]).sum(1)
        label, first, rest = each.detach().argmax(2), each[:, :1].expand_as(each[:, 1:]), each[:, 1:]
        gain = F.cross_entropy(first.flatten(0, 1), label[:, 1:].flatten(), reduction="none")
        gain = gain + F.cross_entropy(
            rest.flatten(0, 1), label[:, :1].expand_as(label[:, 1:]).flatten(), reduction="none"
        )
        return gain.view(len(logits), -1).sum(1)

    def length(self, step: int) -> float:
        """Linear from ``lr[0]`` to ``lr[1]``, in the data's units."""
        return self.lr[0] + (self.lr[1] - self.lr[0]) * step / max(self.steps, 1)

    def shown(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The point as it is sent: rounded to the 256 levels between the bounds."""
        if not self.quantize:
            return z.detach()
        low, high = self.bounds
        return ((z.detach() - low) / (high - low) * 255).round() / 255 * (high - low) + low

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        if not run.last and (run.step == 0 or run.step % self.check_every):
            return torch.zeros_like(run.met)
        z, run.z = run.z, self.shown(run.z)
        with torch.no_grad():
            run.met = run.goal.met(run.model(run.z))
        run.queries[run.rows] += 1
        run.record(run.met)
        run.z = z
        return run.met


@dataclass(frozen=True, kw_only=True)
class BorderInputs(Identifier):
    """Hardware and software platform inference from labels (Zhang et al., 2024, arXiv:2411.05197, HSPI-BI).

    ``fit({name: model}, x) -> fitted``: the same weights as each platform runs them, as torch modules with gradients
    (see simulate_platform), and images x (n, ...) in ``bounds``. Noise, uniform in +-``noise``, is added; then
    ``steps`` times x <- clip(x + lr_t sign(grad G(f_a(x), f_b(x)))), lr_t falling linearly over ``lr``. G is that of
    the official code: CE(f_a, label of f_b) + CE(f_b, label of f_a) (``gain`` "ce"). While both give one label it
    drives x away from it; over the border it drives x back. "gap" is minus the gap between the two largest logits,
    summed over f_a and f_b. Every ``check_every`` steps x is rounded to 8 bits (``quantize``) and kept where the labels
    then differ. A sample's search ends there; in the official code that of its batch does.

    ``against`` "one" searches every pair; "rest" for every platform the inputs on which it differs from all others and
    these agree, with G summed over them (in the paper, not in its code). A border input is kept if its labels are the
    same in ``repeats`` further looks, each in smaller batches than the one before: batch size is a platform too.

    ``fitted.identify(service) -> {name: votes}`` asks a callable for labels (n,) or scores (n, c). A pair for which
    nothing was found has no entry, and there is a warning. Raises InputError for fewer than two platforms, unequal
    classes, or images out of bounds.
    """

    contract: ClassVar[bool] = False

    steps: int = 400
    lr: tuple[float, float] = (1e-3, 1e-4)
    check_every: int = 20
    noise: float = 0.01
    quantize: bool = True
    gain: Literal["ce", "gap"] = "ce"
    against: Literal["one", "rest"] = "one"
    repeats: int = 2
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.gain not in GAINS:
            raise unknown("gain of BorderInputs", self.gain, GAINS)
        if self.against not in ("one", "rest"):
            raise unknown("against of BorderInputs", self.against, ("one", "rest"))
        if self.steps < 1 or self.check_every < 1 or self.repeats < 0:
            found = f"steps {self.steps}, check_every {self.check_every}, repeats {self.repeats}"
            raise InputError(f"BorderInputs: {found}; expected steps, check_every >= 1 and repeats >= 0")
        if len(self.lr) != 2 or min(self.lr) < 0 or not 0 <= self.noise <= 1:
            found = f"lr {self.lr}, noise {self.noise}"
            raise InputError(f"BorderInputs: {found}; expected two rates >= 0 and noise in [0, 1]")

    def search(self) -> BorderSearch:
        """The gradient search for border inputs."""
        names = ("steps", "lr", "check_every", "noise", "quantize", "gain", "bounds")
        whole = Linf(self.bounds[1] - self.bounds[0])  # the bounds are the only limit
        return BorderSearch(ball=whole, **{name: getattr(self, name) for name in names})

    def keys(self, names: Key) -> Iterator[Key]:
        """What is searched: the platform that differs first, then those it differs from."""
        if self.against == "one":
            return combinations(names, 2)
        return ((name, *(other for other in names if other != name)) for name in names)

    def fit(
        self,
        models: Mapping[str, nn.Module],
        x: Float[Tensor, "n ..."],
        *,
        seed: int = 0,
        index: Int[Tensor, " n"] | None = None,
    ) -> FittedBorderInputs:
        """Search border inputs from the images ``x``; their ``index`` names the streams of their noise."""
        self.check_platforms(models)
        check_inputs("BorderInputs", x, None, self.bounds)
        classes = {name: predict(model, x[:1]).shape[1] for name, model in models.items()}
        if len(set(classes.values())) > 1:
            raise InputError(f"BorderInputs: the platforms give {classes} classes; expected the same for all")
        images: dict[Key, Tensor] = {}
        labels: dict[Key, Tensor] = {}
        for key in self.keys(tuple(models)):
            together, goal = SideBySide([models[name] for name in key]), Border(torch.arange(len(x)), len(key))
            result = self.search().run(together, x, goal, seed=derive(seed, *key), index=index)
            found, given = self._stable(together, goal, result.x_adv[result.success])
            if len(found):
                images[key], labels[key] = found, given
            else:
                warnings.warn(f"BorderInputs: no border input of {' and '.join(key)}", RuntimeWarning, stacklevel=2)
        return FittedBorderInputs(tuple(models), images, labels, len(x))

    def _stable(self, together: SideBySide, goal: Border, x: Tensor) -> tuple[Tensor, Int[Tensor, "n 2"]]:
        """The border inputs that are the same at every look, and the labels of the first platform and of the rest."""
        if not len(x):
            return x, torch.zeros(0, 2, dtype=torch.int64)
        sizes = [-(-len(x) // (look + 1)) for look in range(self.repeats + 1)]
        looks = [goal.each(predict(together, x, batch_size=size)).argmax(2) for size in sizes]
        first = looks[0]
        same = torch.stack([look == first for look in looks]).all(0).all(1)
        kept = same & (first[:, 0] != first[:, 1]) & (first[:, 1:] == first[:, 1:2]).all(1)
        return x[kept], first[kept, :2]


@dataclass(frozen=True)
class FittedBorderInputs:
    """``names_`` of the platforms; by key (the differing platform first) ``images_`` (k, ...) and ``labels_`` (k, 2).

    The columns of the labels are that of the first platform and that of the rest. ``tried_`` images were started from.
    """

    names_: Key
    images_: dict[Key, Tensor]
    labels_: dict[Key, Tensor]
    tried_: int

    def share(self, *key: str) -> float:
        """The share of the images from which a border input was found."""
        return len(self.images_.get(key, ())) / self.tried_

    def identify(self, service: Callable[[Tensor], Tensor]) -> dict[str, int]:
        """One vote a key: for the platform whose labels the service gave more often, none where neither has more.

        An answer that is neither's counts for none. In a search against the rest, the rest has no vote.
        """
        votes = dict.fromkeys(self.names_, 0)
        oracle = service if isinstance(service, Oracle) else Oracle(service)
        with evaluating(service) if isinstance(service, nn.Module) else nullcontext():
            for key, images in self.images_.items():
                given = oracle.decisions(images).cpu()
                if given.shape != (len(images),):
                    shape = tuple(given.shape)
                    raise InputError(f"BorderInputs: the service gives {shape}; expected ({len(images)},) or scores")
                first, rest = (given[:, None] == self.labels_[key]).sum(0).tolist()
                if first > rest:
                    votes[key[0]] += 1
                elif rest > first and len(key) == 2:
                    votes[key[1]] += 1
        return votes

    def name(self, service: Callable[[Tensor], Tensor]) -> str | None:
        """The platform with the most votes; None where there is none, or no single one."""
        return winner(self.identify(service))
