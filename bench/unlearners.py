"""Unlearners side by side: CPU time as a fraction of retraining, and the authors' SSD and SCRUB beside ours.

``python bench/unlearners.py [--runs 3] [--ssd FOLDER] [--scrub FOLDER]``; needs ASSAY_DATA (MNIST). FOLDER is a copy of
if-loops/selective-synaptic-dampening with ``ssd.py``, of meghdadk/SCRUB with ``thirdparty/repdistiller``; both run as
they are, on one thread, in this process (packages that ssd.py imports for its figures are answered by empty ones).

One class of 2,000 images is forgotten by a SmallCNN that trains for 12 epochs in batches of 64; methods that train take
5 epochs in batches of 64 of the sets that they use. In each run retraining is timed anew, then every arm; ``ratio`` is
the median over the runs of an arm's time over that run's retraining, ``low`` and ``high`` its range. SSD gets the same
batches in the same order from both sides: ``difference`` is the largest one of a weight. SCRUB's batches are drawn by
each side: its time alone is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, EPOCHS, BATCH = 2000, 5, 64
FIXED: dict[str, dict[str, Any]] = {
    "DatamodelDirect": {"models": 1, "proj_dim": 100},
    "DatamodelMatching": {"models": 1, "proj_dim": 100},
    "OracleMatching": {"oracles": 1},
}
Arm = Callable[[], nn.Module]


def problem(seed: int) -> tuple[Any, Any, Any]:
    """The subject, what it forgets and what it retains."""
    from assay.data import load_data
    from assay.nets import SmallCNN
    from assay.runtime.random import seeded
    from assay.subject import Subject
    from assay.training import Supervised
    from assay.unlearn import forget_set

    train, recipe = load_data("mnist:train").limit(SAMPLES), Supervised(epochs=12, batch_size=BATCH, lr=5e-3)
    with seeded(seed):
        start = SmallCNN(train.shape, 10, (8, 16), 32)  # type: ignore[arg-type]
    model = recipe.fit(start, train, seed=seed)
    return Subject(model, load_data("mnist:test").limit(500), train, recipe=recipe), *forget_set(train, "class=3")


def ours(subject: Any, forget: Any, retain: Any, seed: int) -> dict[str, Arm]:
    """Every exported unlearner of classifiers."""
    import assay.unlearn
    from assay.unlearn import Unlearner

    def arm(method: Unlearner) -> Arm:
        return lambda: method.forget(subject, forget, retain, seed=seed)

    found = {}
    for name in assay.unlearn.__all__:
        cls = getattr(assay.unlearn, name)
        if isinstance(cls, type) and issubclass(cls, Unlearner) and cls is not Unlearner:
            if getattr(cls, "task", "classification") != "classification":
                continue
            known = {f.name for f in fields(cls)}
            budget = {k: v for k, v in {"epochs": EPOCHS, "batch_size": BATCH}.items() if k in known}
            found[name] = arm(replace(cls(), **(budget if "epochs" in known else {}) | FIXED.get(name, {})))
    return found


def _loader(data: Any, *, size: int, order: Tensor | None = None) -> DataLoader:
    """Batches in that order, else shuffled."""
    rows = torch.arange(len(data)) if order is None else order
    return DataLoader(TensorDataset(data.x[rows], data.index[rows], data.y[rows]), size, shuffle=order is None)


def authors_ssd(folder: Path, subject: Any, forget: Any, seed: int) -> Arm:
    """The ParameterPerturber, with alpha 10 and lambda 1."""
    from assay.runtime.random import torch_rng

    for name in ("wandb", "seaborn", "torchvision", "tqdm", "matplotlib", "matplotlib.pyplot"):
        sys.modules.setdefault(name, ModuleType(name))
    for name in ("datasets", "models", "transforms"):
        setattr(sys.modules["torchvision"], name, None)
    sys.modules["tqdm"].tqdm = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    perturber = importlib.import_module("ssd").ParameterPerturber
    options = {"lower_bound": 1, "exponent": 1, "magnitude_diff": None, "min_layer": -1, "max_layer": -1}
    options |= {"forget_threshold": 1, "dampening_constant": 1, "selection_weighting": 10}

    def run() -> nn.Module:
        model = copy.deepcopy(subject.model).eval()
        with contextlib.redirect_stdout(sys.stderr):
            judge = perturber(model, torch.optim.SGD(model.parameters(), 0.1), "cpu", options)
        found = []
        for data in (forget, subject.train):
            order = torch.randperm(len(data), generator=torch_rng(seed, "importance"))
            found.append(judge.calc_importance(_loader(data, size=128, order=order)))
        judge.modify_weight(found[1], found[0])
        return model

    return run


def authors_scrub(folder: Path, subject: Any, forget: Any, retain: Any, seed: int) -> Arm:
    """Their epochs of distillation: three that climb on what is forgotten, five on what is retained."""
    from assay.runtime.random import seeded

    sys.path.insert(0, str(folder))
    epoch = importlib.import_module("thirdparty.repdistiller.helper.loops").train_distill
    options = SimpleNamespace(distill="kd", gamma=1.0, alpha=0.5, beta=0.0, print_freq=10**9)

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        p, q = (student / 4).log_softmax(1), (teacher / 4).softmax(1)
        return nn.functional.kl_div(p, q, reduction="batchmean") * 16

    def run() -> nn.Module:
        student, teacher = (copy.deepcopy(subject.model) for _ in range(2))
        optimizer = torch.optim.SGD(student.parameters(), 5e-4, 0.9, weight_decay=5e-4)
        losses = [nn.CrossEntropyLoss(), divergence, divergence]
        sets = [DataLoader(TensorDataset(d.x, d.y), BATCH, shuffle=True) for d in (forget, retain)]
        with seeded(seed):
            for k in range(EPOCHS):
                for split, data in zip(("maximize", "minimize"), sets, strict=True):
                    if split == "minimize" or k < 3:
                        epoch(k, data, [student, teacher], None, losses, optimizer, options, split, quiet=True)
        return student

    return run


def _difference(a: nn.Module, b: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def main() -> None:
    """Time all arms in turn and print one JSON row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ssd", type=Path)
    parser.add_argument("--scrub", type=Path)
    parser.add_argument("--only", nargs="*", help="arms by the start of their names; Retrain is always run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject, forget, retain = problem(0)
    arms = ours(subject, forget, retain, 0)
    if given.ssd is not None:
        arms["SelectiveSynapticDampening, the authors'"] = authors_ssd(given.ssd, subject, forget, 0)
    if given.scrub is not None:
        arms["SCRUB, the authors'"] = authors_scrub(given.scrub, subject, forget, retain, 0)
    chosen = tuple(given.only or ("",))
    names = ["Retrain", *(n for n in arms if n != "Retrain" and n.startswith(chosen))]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    models = {}
    for _ in range(given.runs):
        whole = 0.0
        for name in names:
            begun = time.process_time()
            models[name] = arms[name]()
            spent = time.process_time() - begun
            whole = spent if name == "Retrain" else whole
            ratios[name].append(spent / whole)
    for name in sorted(names, key=lambda n: statistics.median(ratios[n])):
        row: dict[str, Any] = {"arm": name, "ratio": statistics.median(ratios[name])}
        row |= {"low": min(ratios[name]), "high": max(ratios[name])}
        if name.startswith("SelectiveSynapticDampening,") and "SelectiveSynapticDampening" in models:
            row["difference"] = _difference(models[name], models["SelectiveSynapticDampening"])
        sys.stdout.write(json.dumps({k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


if __name__ == "__main__":
    main()
