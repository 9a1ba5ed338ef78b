"""One evaluation for all unlearners: against retrained models, over several seeds, sample by sample."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import derive
from assay.runtime.statistics import bootstrap, t_interval
from assay.runtime.store import Store
from assay.subject import Subject
from assay.unlearn.base import Unlearner
from assay.unlearn.evaluation_relearn import relearn_steps, right
from assay.unlearn.evaluation_rows import Row, forgetting
from assay.unlearn.klom import klom, margins
from assay.unlearn.references import Reference, trained
from assay.unlearn.ulira import chance, ulira

if TYPE_CHECKING:
    import pandas as pd

ARMS = ("subject", "unlearned", "retrained")
POINTS = 1000
FEWEST = 3
RULES = ("last", "rewind", "gap")
Rule = Literal["last", "rewind", "gap"]


@dataclass(frozen=True)
class Run:
    """One seed: the model that was trained on everything, the unlearned one, and the seconds that unlearning took."""

    subject: nn.Module
    unlearned: nn.Module
    seconds: float
    epoch: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """``rows``: one a model, see ``evaluate``. ``margins_[arm][part]`` (n, q): the log-odds behind KLoM and U-LiRA, for
    the arms and "reference", on "forget", "retain" and "test". ``epochs_``: the epoch that was kept, a seed.
    """

    rows: Sequence[Row]
    margins_: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    epochs_: Sequence[int | None] = ()

    def __getitem__(self, model: str) -> Row:
        return next(row for row in self.rows if row["model"] == model)

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity, one column a model (needs pandas)."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("model").T


def evaluate(
    unlearner: Unlearner,
    subject: Subject,
    forget: Data,
    retain: Data,
    *,
    seeds: Sequence[int] = range(5),
    keep: Rule = "last",
    relearn: bool = True,
    store: Store | None = None,
) -> Evaluation:
    """What ``unlearner`` does to ``forget``, over ``seeds``, beside two ensembles of retrained models.

    Every seed unlearns a model of its own: the subject's for the first, for each other one a model that the subject's
    recipe trains anew on all the data. As many are retrained without ``forget`` twice over: one set is the reference,
    the other is shown as the arm "retrained" and is what chance alone leaves. All of these are kept in ``store``.

    ``keep`` says which epoch counts (``Unlearner.stages``): "last"; "rewind", the one whose error on ``forget`` is
    nearest to the last one's error on held-out samples of the same classes (Kurmanji et al., 2023, arXiv:2302.09880,
    SCRUB+R), which needs no retrained model; "gap", the one nearest to the seed's reference in the mean gap, which no
    user could choose: the best that the unlearner could have done. The time is that of all the epochs.

    Rows: see ``tabulate``. Raises AccessError where the subject has no recipe, InputError for repeated seeds.
    """
    if keep not in RULES:
        raise unknown("rule to keep an epoch", str(keep), RULES)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"evaluate: seeds={list(seeds)}; expected at least one, all different")
    train = unlearner.check(subject, forget, retain)
    references, others = ensembles(subject, retain, seeds, store=store)
    runs = []
    for k, seed in enumerate(seeds):
        start = subject.model if k == 0 else trained(subject, train, seed=derive(seed, "original"), store=store).model
        runs.append(_run(unlearner, subject.with_model(start), forget, retain, seed, keep, references[k].model))
    return tabulate(subject, runs, references, others, forget, retain, relearn=relearn)


def ensembles(
    subject: Subject, retain: Data, seeds: Sequence[int], *, store: Store | None
) -> tuple[list[Reference], list[Reference]]:
    """Two sets of models trained on ``retain`` alone, one a seed each; the same one where there is a single seed."""
    first = [trained(subject, retain, seed=derive(s, "retrain"), store=store) for s in seeds]
    if len(seeds) == 1:
        return first, first
    return first, [trained(subject, retain, seed=derive(s, "retrain again"), store=store) for s in seeds]


def _run(
    unlearner: Unlearner, subject: Subject, forget: Data, retain: Data, seed: int, keep: Rule, reference: nn.Module
) -> Run:
    begun = time.perf_counter()
    if keep == "last":
        model = unlearner.forget(subject, forget, retain, seed=seed)
        return Run(subject.model, model, time.perf_counter() - begun)
    stages = unlearner.stages(subject, forget, retain, seed=seed)
    seconds = time.perf_counter() - begun
    if keep == "rewind":
        aim = right(stages[-1], _alike(subject, forget))
        distance = [abs(right(m, forget) - aim) for m in stages]
    else:
        models = {str(e): m for e, m in enumerate(stages)}
        rows = forgetting(subject, models, forget, retain, {}, seed=seed, against=reference)
        distance = [row["gap"] for row in rows]
    best = int(np.argmin(distance))
    return Run(subject.model, stages[best], seconds, best + 1)


def _alike(subject: Subject, forget: Data) -> Data:
    """Held-out samples of the forgotten classes."""
    assert subject.holdout is not None
    chosen = torch.isin(subject.holdout.y, forget.y.unique())
    if not chosen.any():
        raise InputError("rewind: the held-out data have no sample of the forgotten classes; expected some")
    return subject.holdout[chosen]


def tabulate(
    subject: Subject,
    runs: Sequence[Run],
    references: Sequence[Reference],
    others: Sequence[Reference],
    forget: Data,
    retain: Data,
    *,
    relearn: bool = True,
) -> Evaluation:
    """The table of an evaluation: rows "subject", "unlearned" and "retrained" (of ``others``).

    Keys: those of ``forgetting`` measured against ``references``; from three seeds on ``klom_forget``,
    ``klom_forget_p95``, ``klom_retain`` and ``klom_test`` against them (mean or 95th percentile over at most 1000
    samples, bootstrap over samples; a fifth as many bins as models, 3 to 20, as the paper's 20 for 100),
    ``ulira_accuracy``, ``ulira_chance``, what it exceeds in one of twenty cases where there is no trace, and
    ``ulira_worst``, its 95th percentile over samples; ``relearn_steps`` until 95% of the subject's accuracy on
    ``forget``. Means over seeds, with Student's interval from five on; a single seed keeps the intervals over samples.
    """
    models: dict[str, list[nn.Module]] = {
        "subject": [r.subject for r in runs],
        "unlearned": [r.unlearned for r in runs],
        "retrained": [o.model for o in others],
    }
    tables = []
    for k, run in enumerate(runs):
        arms = {name: models[name][k] for name in ARMS}
        seconds = {"unlearned": run.seconds, "retrained": others[k].seconds}
        rows = forgetting(subject, arms, forget, retain, seconds, seed=k, against=references[k].model)
        if relearn:
            target = 0.95 * right(run.subject, forget)
            for row in rows:
                steps = relearn_steps(arms[row["model"]], subject, forget, retain, target=target, seed=k)
                row["relearn_steps"] = steps
        tables.append(rows)
    table = [_over_seeds([t[a] for t in tables]) for a in range(len(ARMS))]
    found = _all_margins(subject, {**models, "reference": [r.model for r in references]}, forget, retain)
    if len(runs) >= FEWEST:
        for row in table:
            row |= _distances(found[row["model"]], found["reference"])
    return Evaluation(table, found, [r.epoch for r in runs])


def _over_seeds(rows: Sequence[Row]) -> Row:
    """The mean of each number with Student's interval; one row as it is."""
    if len(rows) == 1:
        return dict(rows[0])
    merged: Row = {"model": rows[0]["model"]}
    for key in [k for k in rows[0] if k != "model" and not k.endswith(("_low", "_high"))]:
        values = [row[key] for row in rows if row[key] is not None]
        merged[key] = float(np.mean(values)) if values else None
        if key not in ("seconds", "time_ratio"):
            low, high = t_interval(np.array(values)) if len(values) >= 5 else (None, None)
            merged |= {f"{key}_low": low, f"{key}_high": high}
    return merged


def _all_margins(
    subject: Subject, models: Mapping[str, Sequence[nn.Module]], forget: Data, retain: Data
) -> dict[str, dict[str, Tensor]]:
    parts = {"forget": forget, "retain": retain.limit(POINTS), "test": subject.test.limit(POINTS)}
    parts["forget"] = forget.limit(POINTS)
    return {
        arm: {name: torch.stack([margins(predict(m, d.x), d.y) for m in group]) for name, d in parts.items()}
        for arm, group in models.items()
    }


def _distances(arm: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Row:
    """KLoM on each part and U-LiRA on what was forgotten."""
    row: Row = {}
    bins = min(max(len(reference["forget"]) // 5, 3), 20)
    for part in ("forget", "retain", "test"):
        each = klom(arm[part], reference[part], bins=bins).numpy()
        low, high = bootstrap("mean", each[:, None]) if len(each) >= 50 else (None, None)
        row |= {f"klom_{part}": float(each.mean()), f"klom_{part}_low": low, f"klom_{part}_high": high}
        if part == "forget":
            row["klom_forget_p95"] = float(np.quantile(each, 0.95))
    sides = arm["forget"], reference["forget"]
    attack = ulira(*sides)
    row |= {"ulira_accuracy": attack.mean(), "ulira_chance": float(np.quantile(chance(*sides), 0.95))}
    return row | {"ulira_worst": float(np.quantile(attack.by_sample, 0.95))}
