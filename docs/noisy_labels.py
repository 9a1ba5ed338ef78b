"""Training with human label noise side by side: one budget, options chosen on held-out noisy labels, clean accuracy.

``python docs/noisy_labels.py`` (``make noisy-labels``); needs ASSAY_DATA with CIFAR-10 and the labels of CIFAR-10N
(Wei et al., 2021, arXiv:2110.12088). Every finished run is a line of ``docs/runs/noisy_labels.jsonl``; one there
is not run again, so that the script can be stopped at any time. At the end it writes the table of
``docs/noisy_labels.md``.

A run trains a small network on ``TRAIN`` images with one set of human labels. The budget is ``PASSES`` passes over the
data: a method with two networks or two stages has half as many epochs. Under seed 0 all options of a method are run;
those with the best accuracy on ``HELD`` further images *with noisy labels* are run under the other seeds. Reported is
the accuracy on ``TEST`` test images with clean labels, after the last epoch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from assay.data import Data, load_data
from assay.methods import from_text
from assay.nets import SmallCNN
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised, Trainer

ROOT = Path(__file__).parent
ROWS, PAGE = ROOT / "runs" / "noisy_labels.jsonl", ROOT / "noisy_labels.md"
TRAIN, HELD, TEST, PASSES, SEEDS = 2000, 1000, 2500, 30, 3
LABELS = {"human_worse": "worse", "human_random1": "random 1", "human_aggre": "aggregate"}
CE = "cross-entropy"


@dataclass(frozen=True)
class Entry:
    """A method of the table: its options that are tried, and by how much its epochs cost more than plain ones.

    ``passes`` is shown where the options state their own epochs.
    """

    options: tuple[str, ...]
    cost: int = 1
    passes: str = ""


METHODS: Mapping[str, Entry] = {
    CE: Entry(("training.Supervised",)),
    "cross-entropy, stopped early": Entry(
        tuple(f"training.Supervised:epochs={e}" for e in (5, 10, 15)), passes="5, 10 or 15 x 1"
    ),
    "label smoothing": Entry(tuple(f"labels.LabelSmoothing:label_smoothing={s}" for s in (0.1, 0.3))),
    "GCE": Entry(("labels.GCE:q=0.3", "labels.GCE:q=0.7")),
    "symmetric CE": Entry(("labels.SymmetricCE:alpha=0.1,beta=1", "labels.SymmetricCE:alpha=6,beta=0.1")),
    "bootstrap": Entry(("labels.Bootstrap:mode=soft,beta=0.8", "labels.Bootstrap:mode=hard")),
    "forward correction": Entry(tuple(f"labels.ForwardCorrection:percentile={p}" for p in (97, 100)), 2),
    "backward correction": Entry(tuple(f"labels.BackwardCorrection:prior=0.3,percentile={p}" for p in (97, 100)), 2),
    "mixup": Entry(("labels.Mixup:alpha=1", "labels.Mixup:alpha=8")),
    "CutMix": Entry(("labels.CutMix",)),
    "logit adjustment": Entry(("labels.LogitAdjustment",)),
    "ELR": Entry(("labels.ELR:beta=0.7,strength=3", "labels.ELR:beta=0.9,strength=1")),
    "ELR+": Entry(tuple(f"labels.ELRPlus:average_steps=0,average={a}" for a in (0.99, 0.997)), 2),
    "prune and retrain": Entry(tuple(f"labels.PruneAndRetrain:folds=2,prune={p}" for p in ("noise-rate", "both")), 2),
    "co-teaching": Entry(tuple(f"labels.CoTeaching:ramp=3,forget_rate={r}" for r in (0.1, 0.2, 0.4)), 2),
    "co-teaching+": Entry(tuple(f"labels.CoTeachingPlus:ramp=3,warm=4,forget_rate={r}" for r in (0.1, 0.2, 0.4)), 2),
    "DivideMix": Entry(("labels.DivideMix:warm=2,ramp=3", "labels.DivideMix:warm=4,ramp=3,doubtful=0"), 2),
}


@dataclass(frozen=True)
class Split:
    """What one seed trains on, chooses on and reports on."""

    train: Data
    held: Data
    test: Data
    wrong: torch.Tensor


def split(whole: Data, test: Data, labels: str, seed: int) -> Split:
    """Disjoint images with the human labels ``labels``, and clean test images that all seeds share."""
    part = whole.limit(TRAIN + HELD, seed=seed)
    train, held = part.with_y(part.fields[labels].long()).split(TRAIN / (TRAIN + HELD), seed=seed)
    true = part.y[torch.isin(part.index, train.index)]
    return Split(train, held, test.limit(TEST), train.y != true)


def trained(start: nn.Module, given: Split, text: str, cost: int, seed: int) -> nn.Module:
    """The network that the method of a text form makes with its share of the budget."""
    budget: dict[str, Any] = {"epochs": PASSES // cost, "batch_size": 32, "lr": 0.003}
    method = from_text(text)
    if isinstance(method, Trainer):
        budget |= {"epochs": method.epochs} if "epochs=" in text else {}
        return replace(method, **budget).fit(start, given.train, seed=seed)
    subject = Subject(start, given.held, given.train, recipe=Supervised(**budget))
    return cast(nn.Module, method.repair(subject, seed=seed))


def accuracy(model: nn.Module, data: Data) -> float:
    """The share of labels that the model predicts."""
    return float((predict(model, data.x).argmax(1) == data.y).float().mean())


def run(given: Split, text: str, cost: int, seed: int) -> dict[str, float]:
    """Accuracies of one trained network, and the CPU seconds of its training."""
    with seeded(seed, "noisy labels"):
        start = SmallCNN((3, 32, 32), 10, (16, 32), 64)
    begun = time.process_time()
    model = trained(start, given, text, cost, seed)
    seconds = time.process_time() - begun
    return {
        "held": accuracy(model, given.held),
        "clean": accuracy(model, given.test),
        "wrong": accuracy(model, given.train[given.wrong]),
        "seconds": round(seconds, 2),
    }


def finished() -> list[dict[str, Any]]:
    """The rows that are there."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def best(rows: list[dict[str, Any]], labels: str, name: str) -> str | None:
    """The options of a method with the best held-out accuracy under seed 0, once all have been tried."""
    found = {r["options"]: r["held"] for r in rows if r["labels"] == labels and r["seed"] == 0}
    tried = METHODS[name].options
    return max(tried, key=lambda text: found[text]) if set(tried) <= set(found) else None


def todo(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, int]]:
    """What is to be run: (labels, method, options, seed); ``rows`` grows while this goes on."""
    for labels in LABELS:
        for seed in range(SEEDS):
            for name, entry in METHODS.items():
                chosen = best(rows, labels, name)
                for text in entry.options if seed == 0 else [chosen] if chosen else []:
                    done = {(r["labels"], r["options"], r["seed"]) for r in rows}
                    if (labels, text, seed) not in done:
                        yield labels, name, text, seed


def table(rows: list[dict[str, Any]]) -> str:
    """Mean clean accuracy over seeds by label set, with the paired difference from cross-entropy, as markdown."""
    names = list(LABELS.values())
    lines = ["| method | " + " | ".join(f"{n} | wrong ones learnt" for n in names) + " | passes x cost |"]
    lines.append("|---|" + "---:|" * (2 * len(names) + 1))
    for name, entry in METHODS.items():
        cells = [cell(rows, labels, name) for labels in LABELS]
        lines.append(
            f"| {name} | " + " | ".join(cells) + f" | {entry.passes or f'{PASSES // entry.cost} x {entry.cost}'} |"
        )
    return "\n".join(lines)


def cell(rows: list[dict[str, Any]], labels: str, name: str) -> str:
    """Two cells: accuracy and its difference from cross-entropy (mean, standard deviation over seeds); wrong labels."""
    own, plain = (runs(rows, labels, n) for n in (name, CE))
    if own is None or plain is None:
        return "- | -"
    gain = np.array([own[s]["clean"] - plain[s]["clean"] for s in range(SEEDS)]) * 100
    clean = 100 * np.mean([own[s]["clean"] for s in range(SEEDS)])
    wrong = 100 * np.mean([own[s]["wrong"] for s in range(SEEDS)])
    beside = "" if name == CE else f" ({gain.mean():+.1f} ± {gain.std(ddof=1):.1f})"
    return f"{clean:.1f}{beside} | {wrong:.0f}"


def runs(rows: list[dict[str, Any]], labels: str, name: str) -> dict[int, dict[str, Any]] | None:
    """The runs of a method's chosen options by seed, once they are complete."""
    text = best(rows, labels, name)
    found = {r["seed"]: r for r in rows if r["labels"] == labels and r["options"] == text}
    return found if len(found) == SEEDS else None


def write(rows: list[dict[str, Any]]) -> None:
    """Put the table between its marks in the page."""
    before, mark, rest = PAGE.read_text().partition("<!-- table -->\n")
    after = rest.partition("<!-- /table -->")
    PAGE.write_text(before + mark + table(rows) + "\n" + "".join(after[1:]))


def main() -> None:
    torch.set_num_threads(1)
    rows = finished()
    pending = next(todo(rows), None)
    if pending is not None:
        whole, test = load_data("cifar10", "train"), load_data("cifar10", "test")
        kept: dict[tuple[str, int], Split] = {}
        for labels, name, text, seed in todo(rows):
            if (labels, seed) not in kept:
                kept[labels, seed] = split(whole, test, labels, seed)
            found = run(kept[labels, seed], text, METHODS[name].cost, seed)
            row = {"labels": labels, "method": name, "options": text, "seed": seed, **found}
            rows.append(row)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(f"{json.dumps(row)}\n")
    write(rows)


if __name__ == "__main__":
    main()
