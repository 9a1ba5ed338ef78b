"""All calibrators side by side: one small network a data set and seed, calibrated on held-out images, judged on others.

``python docs/calibrators.py`` (``make calibrators``); needs ASSAY_DATA with MNIST and CIFAR-10. What was measured is
kept in ``docs/runs/calibrators.jsonl``, one line a data set and seed; a line that is there is not measured again:
remove it to renew it. At the end the tables of ``docs/calibrators.md`` are written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from readme import replace

from assay.calibrate import Outputs, brier, classwise_ece, ece, nll
from assay.data import Data, load_data
from assay.methods import exported
from assay.nets import SmallCNN
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.runtime.statistics import t_interval
from assay.training import Supervised

ROOT = Path(__file__).parent
ROWS, PAGE = ROOT / "runs" / "calibrators.jsonl", ROOT / "calibrators.md"
NONE, SEEDS, HELD, TEST = "none", 5, 1000, 4000
TRAINED: Mapping[str, tuple[int, Supervised]] = {
    "mnist": (1000, Supervised(epochs=20, batch_size=64, lr=2e-3)),
    "cifar10": (3000, Supervised(epochs=12, batch_size=64, lr=2e-3)),
}
MEASURES = {"ece": "ECE", "classwise": "class-wise ECE", "nll": "NLL", "brier": "Brier", "accuracy": "accuracy"}
SCALED = ("ece", "classwise", "accuracy")  # shown in percent


@cache
def images(source: str) -> tuple[Data, Data]:
    """Training and test images."""
    return load_data(source, "train"), load_data(source, "test")


def measured(logits: Any, y: Any) -> dict[str, float]:
    """Every measure of the softmax of ``logits``."""
    p = logits.double().softmax(1)
    return {
        "ece": ece(p, y),
        "classwise": classwise_ece(p, y),
        "nll": nll(p, y),
        "brier": brier(p, y),
        "accuracy": float((p.argmax(1) == y).double().mean()),
    }


def run(source: str, seed: int) -> dict[str, Any]:
    """Every calibrator on one trained network: its measures on test images, and the seconds of its fit."""
    count, recipe = TRAINED[source]
    train = images(source)[0].limit(count, seed=seed)
    held, test = images(source)[1].limit(HELD + TEST, seed=seed).split(HELD / (HELD + TEST), seed=seed)
    with seeded(seed, "calibrators"):
        start = SmallCNN(train.shape, len(train.classes), (16, 32), 64)  # type: ignore[arg-type]
    model = recipe.fit(start, train, seed=seed)
    outputs, new = Outputs(predict(model, held.x)), Outputs(predict(model, test.x))
    methods = {NONE: {**measured(new.logits, test.y), "seconds": 0.0}}
    for name, cls in sorted(exported("calibrator").items()):
        begun = time.process_time()
        fitted = cls().fit(outputs, held.y)  # type: ignore[attr-defined]
        seconds = time.process_time() - begun
        methods[name.partition(".")[2]] = {**measured(fitted.transform(new), test.y), "seconds": seconds}
    return {"data": source, "seed": seed, "methods": methods}


def finished() -> list[dict[str, Any]]:
    """The runs that are there."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table(rows: list[dict[str, Any]], source: str) -> str:
    """Means over seeds with half of Student's 95% interval, best mean of each measure in bold, as markdown."""
    runs = [r["methods"] for r in rows if r["data"] == source]
    names = list(runs[0])
    values = {m: np.array([[r[n][m] for r in runs] for n in names]) for m in MEASURES}
    heads = [f"{title}, %" if m in SCALED else title for m, title in MEASURES.items()]
    lines = [f"| calibrator | {' | '.join(heads)} | fit, s |", "|---|" + "---:|" * (len(heads) + 1)]
    for k, name in enumerate(names):
        cells = [cell(values[m], k, m) for m in MEASURES]
        seconds = np.mean([r[name]["seconds"] for r in runs])
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.2f} |")
    return "\n".join(lines)


def cell(values: np.ndarray, k: int, measure: str) -> str:
    """One mean and its half interval."""
    factor, digits = (100, 2) if measure in SCALED else (1, 3)
    means = values.mean(1)
    best = means[k] == (means.max() if measure == "accuracy" else means.min())
    low, high = t_interval(values[k])
    text = f"{factor * means[k]:.{digits}f} ± {factor * (high - low) / 2:.{digits}f}"
    return f"**{text}**" if best else text


if __name__ == "__main__":
    rows = finished()
    for source in TRAINED:
        for seed in range(SEEDS):
            if not any(r["data"] == source and r["seed"] == seed for r in rows):
                rows.append(run(source, seed))
                with ROWS.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(source, seed, flush=True)
    text = PAGE.read_text()
    for source in TRAINED:
        text = replace(text, source, table(rows, source))
    PAGE.write_text(text)
