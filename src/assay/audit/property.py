"""The contract of a property: what it needs, what it costs, and a function from a subject to a Section."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from assay.data.tabular import TabularData
from assay.data.text import TextData
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.metric import Metric, Samples
from assay.subject import Access, Subject

if TYPE_CHECKING:
    from assay.audit.shards import Shards

Profile = Literal["quick", "standard", "deep"]
MOST = 200_000  # samples that a property takes whose memory or time grows faster than theirs
PROFILES: tuple[Profile, ...] = ("quick", "standard", "deep")
CLASSIFIERS = ("classification", "text-classification")  # tasks of what reads inputs that need not be perturbed


@dataclass(frozen=True)
class Context:
    """How an audit runs: its profile, the base seed, the samples that an expensive property may use, and the access.

    ``access`` is the subject's, for what is handed its model alone.
    """

    profile: Profile = "quick"
    seed: int = 0
    limit: int | None = None
    access: Access = Access.WEIGHTS

    def pick(self, quick: Any, standard: Any, deep: Any) -> Any:
        """The value for this profile."""
        return {"quick": quick, "standard": standard, "deep": deep}[self.profile]


@dataclass(frozen=True)
class Plot:
    """Data of one figure. ``kind``: "line", "bar", "scatter", "heatmap" or "images".

    line, scatter: ``series`` maps a label to {"x": [...], "y": [...]} and, for a line, optionally "low" and "high".
    bar: ``series`` maps a label to {"x": [names], "y": [values]}. heatmap: {"": {"z": rows, "x": names, "y": names}}.
    images: {"": {"images": (k, h, w[, 3]) nested lists in 0..255, "captions": [...]}}, at most 24.
    ``reference`` draws a diagonal ("diagonal") or a horizontal line (a number).
    """

    kind: Literal["line", "bar", "scatter", "heatmap", "images"]
    title: str
    series: Mapping[str, Mapping[str, Any]]
    x: str = ""
    y: str = ""
    reference: float | str | None = None


@dataclass
class Section:
    """What one property found: metrics, the per-sample values behind them, plots, and remarks for the reader.

    ``headline`` names the metrics that the terminal table shows. ``findings`` are (severity 0..1, sentence) pairs: the
    worst of all sections open the report. ``skipped`` says why a property did not run.
    """

    metrics: list[Metric] = field(default_factory=list)
    samples: dict[str, Samples] = field(default_factory=dict)
    plots: list[Plot] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[tuple[float, str]] = field(default_factory=list)
    headline: list[str] = field(default_factory=list)
    skipped: str | None = None
    seconds: float = 0.0

    def add(self, measured: Metric | tuple[Metric, Samples]) -> Metric:
        """Keep a metric (with its samples where it has them) and return it."""
        metric, samples = measured if isinstance(measured, tuple) else (measured, None)
        self.metrics.append(metric)
        if samples is not None:
            self.samples[metric.name] = samples
        return metric

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, JSON-ready."""
        kept = {k: getattr(self, k) for k in ("tables", "notes", "findings", "headline", "skipped", "seconds")}
        return {"metrics": [m.to_dict() for m in self.metrics], "plots": [asdict(p) for p in self.plots], **kept}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays for an npz archive."""
        plain = {**self.to_dict(), "samples": [(name, s.statistic) for name, s in self.samples.items()]}
        arrays = {"section": np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)}
        for k, s in enumerate(self.samples.values()):  # by number: a metric may be named after a class, by anything
            arrays[f"values{k}"], arrays[f"index{k}"] = s.values, s.index
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Section:
        """The inverse of to_arrays."""
        plain = json.loads(bytes(arrays["section"]))
        samples = {
            name: Samples(arrays[f"values{k}"], arrays[f"index{k}"], statistic)
            for k, (name, statistic) in enumerate(plain.pop("samples"))
        }
        plain["metrics"] = [Metric(**m) for m in plain["metrics"]]
        plain["plots"] = [Plot(**p) for p in plain["plots"]]
        plain["findings"] = [(float(s), t) for s, t in plain["findings"]]
        return cls(samples=samples, **plain)


@dataclass(frozen=True)
class Cost:
    """Passes of single samples through the model, for the plan: forward, and backward (each with its forward)."""

    forward: int = 0
    backward: int = 0
    trainings: float = 0.0


def retrains(subject: Subject) -> bool:
    """Whether models like the subject's can be trained: it has a recipe, and weights for it to start from."""
    return subject.recipe is not None and any(True for _ in subject.model.parameters())


def other_precision(subject: Subject) -> str | None:
    """The type of numbers that the model computes in, where that is not the type of its inputs."""
    held = (*subject.model.parameters(), *subject.model.buffers())
    types = {t.dtype for t in held if t.is_floating_point()} - {subject.test.x.dtype}
    return str(min(types, key=str)).removeprefix("torch.") if types else None


def check_gradient(model: nn.Module, x: Tensor) -> None:
    """Raise InputError where the logits of ``x`` (n, ...) have no gradient, as behind NumPy or ``torch.no_grad``."""
    with evaluating(model), torch.enable_grad():
        found = model(x[:1].detach().to(device_of(model)).requires_grad_())
    if not found.requires_grad:
        raise InputError("the logits do not depend differentiably on the inputs; expected Access.SCORE or a gradient")


@dataclass(frozen=True)
class Property:
    """One property of a subject. ``measure(subject, context)`` returns its Section; ``cost`` what it will run.

    ``profiles`` are those that include it; ``needs`` the access; ``needs_train`` whether it reads the training data,
    ``needs_recipe`` whether it trains. ``tasks`` are the kinds of subject that it applies to.
    ``most`` samples of a split are all that it takes (None: any number, in flat memory). ``moves`` is set where inputs
    are moved by shares of the data's range, which texts have none of: of tables in units of each column's range
    ("scaled"), or by the property itself ("columns"). ``free`` where all columns have to be free to move.
    ``shards`` says how it is measured in parts, on several workers. ``passes``: it only passes inputs through the
    model, so that the throughput switches of an audit apply to it.
    """

    name: str
    title: str
    measure: Callable[[Subject, Context], Section]
    cost: Callable[[Subject, Context], Cost]
    profiles: Sequence[Profile] = PROFILES
    needs: Access = Access.SCORE
    needs_train: bool = False
    needs_recipe: bool = False
    tasks: tuple[str, ...] = ("classification",)
    most: int | None = None
    moves: Literal["scaled", "columns"] | None = None
    free: bool = False
    shards: Shards | None = None
    passes: bool = False

    def missing(self, subject: Subject) -> str | None:
        """Why this property cannot be measured on ``subject``; None when it can."""
        if subject.task not in self.tasks:
            return f"measures {', '.join(self.tasks)}; the subject's task is {subject.task}"
        if self.moves and isinstance(subject.test, TextData):
            return "moves inputs by shares of their range; the samples are texts"
        if self.free and isinstance(subject.test, TabularData) and subject.test.constrained:
            return f"moves every column freely; {', '.join(subject.test.constrained)} are immutable or integer"
        if subject.access < self.needs:
            return f"needs {self.needs.name} access; the subject grants {subject.access.name}"
        if self.needs_train and subject.train is None:
            return "needs the training data; the subject has none (pass --train)"
        if self.needs_recipe and subject.recipe is None:
            return "needs the training recipe; the subject has none"
        return None
