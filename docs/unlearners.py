"""The table of unlearners in docs/unlearners.md: methods, kinds of forget sets and measures, on MNIST and CIFAR-10.

Run by ``make unlearners``; ``python docs/unlearners.py --only SCRUB --sets "class 3" --data mnist`` runs a part and
``--write`` only writes the page. Each row is kept in docs/runs/unlearners.jsonl when it is done and not run again:
remove a row to renew it. See the page for what is done.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import assay.unlearn
from assay.compress import MagnitudePruning
from assay.data import Data, load_data
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import derive, seeded
from assay.runtime.store import Store
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import (
    FineTune,
    PruneFirstThenUnlearn,
    Unlearner,
    WorstCaseForgetSet,
    evaluate,
    forget_set,
    forgetting,
    manipulate,
    random_set,
    sub_class_set,
    trained,
)

ROOT = Path(__file__).parent
KEPT = ROOT / "runs" / "unlearners.jsonl"
PAGE = ROOT / "unlearners.md"
SEEDS, TUNED_ON = range(3), 100
SAMPLES = {"mnist": 1000, "cifar10": 1200}
TEST = 1500
RECIPE = Supervised(epochs=12, batch_size=64, lr=5e-3)
SHARE, POISONED, CLASS, OTHER = 0.1, 0.05, 3, 7
BUDGET = {"epochs": 5, "batch_size": 64}
RATES = {"sgd": (1e-4, 1e-3, 1e-2, 1e-1), "adam": (1e-5, 1e-4, 1e-3, 1e-2)}
GRIDS: dict[str, tuple[str, Sequence[Any]]] = {
    "BoundaryShrink": ("lr", (1e-5, 1e-4, 1e-3, 1e-2)),
    "DatamodelDirect": ("multiplier", (1.0, 10.0, 100.0, 1000.0)),
    "EUk": ("layers", (1, 2, 3)),
    "FisherForgetting": ("strength", (1e-4, 1e-3, 1e-2, 1e-1)),
    "InfluenceUnlearn": ("alpha", (1e-5, 1e-4, 1e-3, 1e-2)),
    "LAF": ("lr_ue", RATES["adam"]),
    "ModHiFiU": ("p", (0.05, 0.1, 0.2, 0.4)),
    "SelectiveSynapticDampening": ("alpha", (0.3, 1.0, 3.0, 10.0)),
}
FIXED: dict[str, dict[str, Any]] = {
    "DatamodelDirect": {"models": 1, "proj_dim": 100},
    "DatamodelMatching": {"models": 1, "proj_dim": 100, "multiplier": 10.0},
    "LAF": {"lr_ra": 1e-3},
    "OracleMatching": {"oracles": 1},
}
METRICS = {
    "forget_accuracy": "forget",
    "retain_accuracy": "retain",
    "test_accuracy": "test",
    "membership_auc": "MIA AUC",
    "gap": "gap",
    "klom_forget": "KLoM",
    "ulira_accuracy": "U-LiRA",
    "relearn_steps": "relearn",
}


@dataclass(frozen=True)
class Case:
    """A subject with what it forgets and retains."""

    subject: Subject
    forget: Data
    retain: Data


def _subject(train: Data, name: str, seed: int) -> Subject:
    """A network trained on ``train``."""
    with seeded(0, "init"):
        start = SmallCNN(train.shape, len(train.classes), (8, 16), 32)  # type: ignore[arg-type]
    plain = Subject(start, load_data(f"{name}:test").limit(TEST), train, recipe=RECIPE, name=name)
    return plain.with_model(trained(plain, train, seed=derive(seed, "original"), store=Store()).model)


def _random(subject: Subject, train: Data, rest: Data | None) -> tuple[Data, Data]:
    """A tenth at random, the one to tune on from what the table's retains."""
    chosen, _ = random_set(rest or train, round(SHARE * len(train)), seed=0)
    return chosen, train.without(chosen.index)


def _class(subject: Subject, train: Data, rest: Data | None) -> tuple[Data, Data]:
    return forget_set(train, f"class={OTHER if rest else CLASS}")


def _sub_class(subject: Subject, train: Data, rest: Data | None) -> tuple[Data, Data]:
    return sub_class_set(train, OTHER if rest else CLASS)


def _worst_case(subject: Subject, train: Data, rest: Data | None) -> tuple[Data, Data]:
    """The tenth that stays known best without it; options as in the paper's experiment."""
    method = WorstCaseForgetSet(m=round(SHARE * len(train)), rounds=4, inner_lr=2e-4, batch_size=128)
    chosen, _ = method.fit(subject.model, rest or train, seed=0).parts(rest or train)
    return chosen, train.without(chosen.index)


CHOICES: dict[str, Callable[[Subject, Data, Data | None], tuple[Data, Data]]] = {
    "random 10%": _random,
    f"class {CLASS}": _class,
    f"sub-class of {CLASS}": _sub_class,
    "worst-case 10%": _worst_case,
}
POISON = f"poisoned {POISONED:.0%}"
SETS = (*CHOICES, POISON)


@cache
def cases(name: str, kind: str) -> tuple[Case, Case]:
    """The table's case and the one to tune on: another forget set of the same kind, another network, held-out images
    in place of the test images."""
    train = load_data(f"{name}:train").limit(SAMPLES[name])
    found: list[Case] = []
    for seed in (SEEDS[0], TUNED_ON):
        rest = found[0].retain if found else None
        if kind == POISON:  # a patch and the label 0 on some samples, all of which are found
            bad = manipulate(train, size=round(POISONED * len(train)), seed=seed)
            found.append(Case(_subject(bad.data, name, seed), *bad.flagged(1.0, seed=seed)))
        else:
            subject = _subject(train, name, seed)
            found.append(Case(subject, *CHOICES[kind](subject, train, rest)))
    table, other = found
    assert other.subject.holdout is not None
    return table, replace(other, subject=replace(other.subject, test=other.subject.holdout))


def methods() -> dict[str, type[Unlearner]]:
    """Every exported unlearner of classifiers."""
    found = {n: getattr(assay.unlearn, n) for n in assay.unlearn.__all__}
    classes = {n: c for n, c in found.items() if isinstance(c, type) and issubclass(c, Unlearner)}
    return {n: c for n, c in classes.items() if c is not Unlearner and getattr(c, "task", "") != "regression"}


def settings(name: str) -> dict[str, Unlearner]:
    """What is tried of a method, by its words: the values of its one knob, at the budget that all have."""
    cls = methods()[name]
    if cls is PruneFirstThenUnlearn:
        pruner = MagnitudePruning(sparsity=0.8)
        inner = {f"lr={r:g}": FineTune(epochs=BUDGET["epochs"], lr=r) for r in RATES["sgd"]}
        return {text: PruneFirstThenUnlearn(pruner=pruner, unlearner=u) for text, u in inner.items()}
    known = {f.name for f in fields(cls)}
    shared = {k: v for k, v in BUDGET.items() if k in known} if "epochs" in known else {}
    base = replace(cls(), **shared | FIXED.get(name, {}))
    if name not in GRIDS and "lr" not in known:
        return {"": base}
    knob, values = GRIDS.get(name) or ("lr", RATES[getattr(base, "optimizer", "sgd")])
    return {f"{knob}={v:g}": replace(base, **{knob: v}) for v in values}


def tuned(name: str, case: Case) -> tuple[str, Unlearner]:
    """The setting with the smallest gap to a retrained network on the case to tune on; one that diverges is out."""
    tried = settings(name)
    if len(tried) == 1:
        return next(iter(tried.items()))
    subject, forget, retain = case.subject, case.forget, case.retain
    against = trained(subject, retain, seed=derive(TUNED_ON, "retrain"), store=Store()).model

    def gap(method: Unlearner) -> float:
        try:
            models = {"unlearned": method.forget(subject, forget, retain, seed=TUNED_ON)}
            (row,) = forgetting(subject, models, forget, retain, {}, seed=TUNED_ON, against=against)
        except InputError:
            return math.inf
        return float(row["gap"])

    return min(tried.items(), key=lambda item: gap(item[1]))


def run(name: str, kind: str, method: str) -> list[dict[str, Any]]:
    """The rows of one method on one forget set: its own (why there is none, where it diverges), that of the network
    before, and that of retrained ones."""
    torch.set_num_threads(1)
    table, other = cases(name, kind)
    setting, best = tuned(method, other)
    place = {"data": name, "set": kind, "forgotten": len(table.forget), "retained": len(table.retain)}
    try:
        found = evaluate(best, table.subject, table.forget, table.retain, seeds=SEEDS, store=Store())
    except InputError as error:
        return [{**place, "method": method, "setting": f"{setting}: {error}"}]
    arms = {"unlearned": method, "subject": "(before)", "retrained": "(retrained)"}
    return [
        {**place, "method": label, "setting": setting if arm == "unlearned" else "", **_rounded(found[arm])}
        for arm, label in arms.items()
    ]


def _rounded(row: Any) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items() if k != "model" and v is not None}


def wanted(only: Sequence[str] | None, sets: Sequence[str], data: Sequence[str]) -> list[tuple[str, str, str]]:
    """What the table holds: every method on every kind of forget set."""
    return [(d, k, m) for d in data for k in sets for m in only or methods()]


def kept() -> list[dict[str, Any]]:
    """The rows that are done."""
    return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def cell(row: dict[str, Any], metric: str) -> str:
    """The mean over seeds."""
    value = row.get(metric)
    if value is None:
        return ""
    return f"{value:.0f}" if metric == "relearn_steps" else f"{value:.3f}"


def tables(rows: list[dict[str, Any]]) -> str:
    """One markdown table a data set and forget set, the smallest gap first."""
    parts = []
    for name in SAMPLES:
        for kind in SETS:
            here = [r for r in rows if (r["data"], r["set"]) == (name, kind)]
            if here:
                order = {"(before)": -2.0, "(retrained)": -1.0}
                here.sort(key=lambda r: order.get(r["method"], r.get("gap", math.inf)))
                counts = f"{here[0]['forgotten']} forgotten, {here[0]['retained']} retained"
                parts.append(f"## {name}, {kind}: {counts}\n")
                head = ["method", *METRICS.values(), "setting"]
                parts.append("| " + " | ".join(head) + " |\n|---|" + "---:|" * len(METRICS) + "---|")
                lines = [[r["method"], *(cell(r, m) for m in METRICS), r["setting"]] for r in here]
                parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join(parts)


def write() -> None:
    """Put the tables into the page."""
    start, end = "<!-- unlearners -->", "<!-- /unlearners -->"
    head, rest = PAGE.read_text().split(start)
    PAGE.write_text(f"{head}{start}\n\n{tables(kept())}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="methods", choices=sorted(methods()))
    parser.add_argument("--sets", nargs="*", help="kinds of forget sets", choices=SETS, default=SETS)
    parser.add_argument("--data", nargs="*", choices=list(SAMPLES), default=list(SAMPLES))
    parser.add_argument("--write", action="store_true", help="only write the page")
    given = parser.parse_args()
    done = {(r["data"], r["set"], r["method"]) for r in kept()}
    todo = [] if given.write else [t for t in wanted(given.only, given.sets, given.data) if t not in done]
    KEPT.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(given.jobs) as pool:
        for number, future in enumerate(as_completed([pool.submit(run, *t) for t in todo]), 1):
            if (error := future.exception()) is not None:
                print(f"{number}/{len(todo)} failed: {error!r}", flush=True)
                continue
            fresh = [r for r in future.result() if (r["data"], r["set"], r["method"]) not in done]
            done |= {(r["data"], r["set"], r["method"]) for r in fresh}
            with KEPT.open("a") as file:
                file.writelines(json.dumps(r) + "\n" for r in fresh)
            print(f"{number}/{len(todo)} {fresh[0]['data']}, {fresh[0]['set']}: {fresh[0]['method']}", flush=True)
    write()


if __name__ == "__main__":
    main()
