"""Apply a method or a chain, run its control, audit again, and report what changed in every property."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy import stats
from torch import nn

from assay.audit import Audit, Effect, Effects, audit, differences
from assay.audit.property import Profile
from assay.runtime.callable_module import make_callable
from assay.runtime.errors import AssayError, InputError
from assay.runtime.random import derive
from assay.runtime.spec import spec_of
from assay.runtime.statistics import holm, t_interval
from assay.runtime.store import Store
from assay.subject import Subject
from assay.subject.aligned import aligned
from assay.training import Trainer
from assay.training.distributed import fit_distributed
from assay.unlearn import forget_set, forgetting, trained
from assay.unlearn.evaluation import Run, ensembles, tabulate

MODELS: dict[Profile, int] = {"quick": 5, "standard": 10, "deep": 20}


@runtime_checkable
class Repairing(Protocol):
    """What ``repair`` applies: the changed model, and the same work without the method's ingredient."""

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The repaired model; the subject is untouched."""

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """The control model; None where doing nothing is the control."""


@dataclass(frozen=True)
class Repaired:
    """A chain's subjects: after each step, and the control of the whole chain; seconds that each step took."""

    steps: Sequence[tuple[str, Subject]]
    control: Subject | None
    seconds: Sequence[float]
    control_seconds: float = 0.0


def describe(method: object) -> str:
    """A method as it is written on the command line."""
    room = type(method).__module__.removeprefix("assay.").partition(".")[0]
    spec = spec_of(method)
    options = ",".join(
        f"{k}={v}" for k, v in (spec.options if spec else {}).items() if isinstance(v, (int, float, str))
    )
    return f"{room}.{type(method).__name__}" + (f":{options}" if options else "")


def label(method: object) -> str:
    """``room.Method``."""
    return f"{type(method).__module__.removeprefix('assay.').partition('.')[0]}.{type(method).__name__}"


def apply(
    subject: Subject, methods: Sequence[Any], *, forget: str | None, seed: int, control: bool, processes: int = 1
) -> Repaired:
    """Run a chain of methods and, beside it, the chain of their controls; ``processes`` share each training batch."""
    steps: list[tuple[str, Subject]] = []
    seconds, other, control_seconds = [], subject, 0.0
    for k, method in enumerate(methods):
        step_seed, current = derive(seed, "repair", k), steps[-1][1] if steps else subject
        start = time.perf_counter()
        steps.append((label(method), current.with_model(_step(method, current, forget, step_seed, processes))))
        seconds.append(time.perf_counter() - start)
        if control:
            start = time.perf_counter()
            other = _control(method, other, forget, step_seed, processes)
            control_seconds += time.perf_counter() - start
    return Repaired(steps, other if other is not subject else None, seconds, control_seconds)


def check(subject: Subject, methods: Sequence[Any], *, forget: str | None = None, processes: int = 1) -> None:
    """Raise InputError for a chain that cannot be run, before anything is."""
    if not methods:
        raise InputError("repair: no method; expected at least one (--with ROOM.METHOD)")
    for method in methods:
        kind = getattr(method, "kind", "object")
        if processes != 1 and getattr(type(method), "repair", None) is not Trainer.repair:
            raise InputError(f"--processes {processes}: {label(method)} ({kind}); expected a training method")
        if kind == "unlearner":
            _sets(method, subject, forget)
        elif not isinstance(method, Repairing):
            raise InputError(f"{label(method)} ({kind}); expected a method that repairs a model")
    if forget is not None and not _forgets(methods):
        raise InputError(f"--forget {forget!r}: no method of the chain forgets; expected one of the room unlearn")


def _together(trainer: Any, subject: Subject, seed: int, processes: int) -> nn.Module:
    """What ``trainer.repair`` gives, trained by several processes."""
    data = subject.training(type(trainer).__name__)
    return fit_distributed(trainer, subject.model, data, seed=seed, processes=processes)


def _step(method: Any, subject: Subject, forget: str | None, seed: int, processes: int) -> nn.Module:
    if processes != 1:
        return _together(method, subject, seed, processes)
    if getattr(method, "kind", None) == "unlearner":
        forgotten, retained = _sets(method, subject, forget)
        return method.forget(subject, forgotten, retained, seed=seed)
    repaired: nn.Module = method.repair(subject, seed=seed)
    return repaired


def _control(method: Any, subject: Subject, forget: str | None, seed: int, processes: int) -> Subject:
    if processes != 1:
        return subject.with_model(_together(method.plain(), subject, seed, processes))
    if getattr(method, "kind", None) == "unlearner":
        model = method.control(subject, *_sets(method, subject, forget), seed=seed)
    else:
        model = method.control(subject, seed=seed)
    return subject if model is None else subject.with_model(model)


def _sets(method: object, subject: Subject, forget: str | None) -> tuple[Any, Any]:
    if forget is None:
        raise InputError(f"{label(method)} forgets; expected --forget class=NAME or --forget INDICES.txt")
    train = subject.training(label(method))
    try:
        return forget_set(train, forget)
    except AssayError:
        raise
    except Exception as error:  # names that no file can have, numbers of any size
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(f"--forget {forget[:80]!r}: {reason}; expected samples of the training data") from error


def repair(
    subject: Subject,
    *methods: Any,
    forget: str | None = None,
    seeds: int = 1,
    seed: int = 0,
    control: bool = True,
    processes: int = 1,
    profile: Profile = "quick",
    on_model: Callable[[Repaired], None] | None = None,
    **options: Any,
) -> Effects:
    """Repair a subject and say what it did to every property.

    ``methods`` are applied in turn and audited at every step. The control does the same work without the ingredient;
    an unlearner is evaluated beside retrained models as well, over 5, 10 or 20 models by the profile, each trained by
    the subject's recipe and kept in the result store (``assay.unlearn.tabulate``). ``seeds`` > 1 repeats everything and
    adds the between-run part to the intervals. ``processes`` > 1 of this machine share each training batch
    (``assay.training.distributed``). ``on_model`` is told of the models of the first seed before they are audited.
    Other options are those of ``audit``.
    """
    if seeds < 1:
        raise InputError(f"seeds={seeds}; expected at least 1")
    subject = aligned(subject)
    check(subject, methods, forget=forget, processes=processes)
    before = audit(subject, profile=profile, seed=seed, **options)
    runs: list[Effects] = []
    for k in range(seeds):
        run_seed = derive(seed, "run", k) if k else seed
        repaired = apply(subject, methods, forget=forget, seed=run_seed, control=control, processes=processes)
        if k == 0 and on_model is not None:
            on_model(repaired)
        effects = _effects(before, repaired, methods, profile=profile, seed=seed, **options)
        if k == 0 and _forgets(methods):
            rows = _forgetting(subject, methods, repaired, forget, seed, MODELS[profile], **options)
            effects = replace(effects, forgetting=rows)
        runs.append(effects)
    sizes = {name: m.n for name, m in before.metrics.items()}
    return replace(runs[0], rows=_over_seeds([r.rows for r in runs], sizes)) if seeds > 1 else runs[0]


def _forgets(methods: Sequence[Any]) -> bool:
    return any(getattr(m, "kind", None) == "unlearner" for m in methods)


def _effects(before: Audit, repaired: Repaired, methods: Sequence[Any], **options: Any) -> Effects:
    audits = [(name, audit(s, **options)) for name, s in repaired.steps]
    aside = audit(repaired.control, **options) if repaired.control is not None else None
    rows = differences(before, audits[-1][1], aside)
    meta = {
        "methods": [describe(m) for m in methods],
        "seconds": [round(s, 3) for s in repaired.seconds],
        "control_seconds": round(repaired.control_seconds, 3),
    }
    return Effects(before.name, before, audits, rows, aside, (), meta)


def _forgetting(
    subject: Subject,
    methods: Sequence[Any],
    repaired: Repaired,
    forget: str | None,
    seed: int,
    models: int,
    *,
    store: Store | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **_: Any,
) -> list[dict[str, Any]]:
    """The evaluation of what was unlearned, over as many trained, unlearned and retrained ``models``.

    The first one is the repaired subject; without a recipe there is nothing to compare it with.
    """
    forgotten, retained = _sets(methods[0], subject, forget)
    chain, seconds = repaired.steps[-1][1].model, sum(repaired.seconds)
    if subject.recipe is None:
        alone = {"subject": subject.model, "unlearned": chain}
        return forgetting(subject, alone, forgotten, retained, {"unlearned": seconds}, seed=seed)
    report, kept = progress or (lambda name, done, total: None), store or Store()
    seeds = [derive(seed, "forgetting", k) for k in range(models)]
    runs = [Run(subject.model, chain, seconds)]
    for k, other in enumerate(seeds[1:], 1):
        report("unlearning other models", k, models)
        train = subject.training("the evaluation of forgetting")
        start = subject.with_model(trained(subject, train, seed=derive(other, "original"), store=kept).model)
        again = apply(start, methods, forget=forget, seed=other, control=False)
        runs.append(Run(start.model, again.steps[-1][1].model, sum(again.seconds)))
    report("retraining", models, models)
    references, others = ensembles(subject, retained, seeds, store=kept)
    return list(tabulate(subject, runs, references, others, forgotten, retained).rows)


def _over_seeds(tables: Sequence[Sequence[Effect]], sizes: Mapping[str, int | None]) -> list[Effect]:
    """The means over runs. The interval is Student's over runs where there are five, else of the first run's samples.

    A difference stands when both parts say so: the samples' interval of the mean run, widened by the spread of runs;
    its degrees of freedom are Satterthwaite's (1946), with n - 1 for the samples (``sizes``, by metric) and K - 1 for
    the runs. A metric that a run did not measure has no row.
    """
    rows = []
    named = [{e.name: e for e in table} for table in tables]
    for name in (n for n in named[0] if all(n in table for table in named)):  # a later run may have skipped a property
        effects = [table[name] for table in named]
        first = _mean_run(effects)
        d = np.array([e.difference for e in effects if e.difference is not None])
        if len(d) < len(effects) or first.low is None or first.high is None:
            low, high = t_interval(d) if len(d) == len(effects) and len(d) >= 5 else (None, None)
            how = f"t 95% over {len(d)} runs" if low is not None else None
            rows.append(replace(first, low=low, high=high, interval=how))
            continue
        widths = [e.high - e.low for e in effects if e.low is not None and e.high is not None]
        within = float(np.mean(widths)) / (2 * 1.96)
        between = float(d.std(ddof=1)) / len(d) ** 0.5
        error = (within**2 + between**2) ** 0.5
        spread = _distribution(within, between, sizes.get(first.name) or 0, len(d))
        half, mean = float(spread.ppf(0.975)) * error, float(d.mean())
        p = float(2 * spread.sf(abs(mean) / error)) if error > 0 else float(mean == 0)
        how = f"{(first.interval or '').removesuffix(' 95%')} and {len(d)} runs, 95%"
        rows.append(replace(first, low=mean - half, high=mean + half, p=p, interval=how))
    return _holm(rows)


def _mean_run(effects: Sequence[Effect]) -> Effect:
    """The first run's row with the means over runs; None where a run has none."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if len(known) == len(values) else None

    return replace(
        effects[0],
        after=mean([e.after for e in effects]),
        control=mean([e.control for e in effects]),
        difference=mean([e.difference for e in effects]),
    )


def _distribution(within: float, between: float, n: int, runs: int) -> Any:
    """Student's t for the sum of two squared errors; the normal where runs do not differ."""
    if between == 0:
        return stats.norm
    samples = within**4 / (n - 1) if n > 1 else 0.0
    return stats.t((within**2 + between**2) ** 2 / (between**4 / (runs - 1) + samples))


def _holm(rows: Sequence[Effect]) -> list[Effect]:
    tested = [r.p for r in rows if r.p is not None]
    verdicts = iter(holm(np.array(tested))) if tested else iter(())
    return [replace(r, significant=bool(next(verdicts))) if r.p is not None else r for r in rows]


make_callable(__name__)
