"""Adversarial training side by side: steps a second of assay's trainers, of the authors' TRADES, and of bare passes.

``python bench/training.py [--trades FOLDER] [--steps N]``; needs ASSAY_DATA (CIFAR-10). FOLDER holds ``trades.py`` of
the repository yaodongyu/TRADES, which is run as it is, its calls to a GPU answered on the CPU. Each arm takes the same
number of steps with SGD on batches of 128 images, on one thread, in turn, five times; the median CPU time counts.
"bare" is the least that the method needs: K passes for the perturbation and the pass for the weights, nothing else.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, STEP, RUNS, BATCH = 8 / 255, 2 / 255, 5, 128
Arm = Callable[[], None]


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int, inner: int, both: bool) -> Arm:
    """``inner`` passes to the input and one to the weights a step (of clean and perturbed images where ``both``)."""

    def run() -> None:
        net = copy.deepcopy(model).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9)
        for k in range(steps):
            rows = slice(k * BATCH, (k + 1) * BATCH)
            images, labels = x[rows], y[rows]
            for _ in range(inner):
                z = images.clone().requires_grad_()
                torch.autograd.grad(F.cross_entropy(net(z), labels), z)
            loss = F.cross_entropy(net(images), labels)
            if both:
                loss = loss + F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def ours(method: Any, model: nn.Module, data: Any) -> Arm:
    """A trainer of assay."""
    return lambda: method.fit(model, data, seed=0)


def authors(folder: Path, model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Arm:
    """The loss of the TRADES repository in the loop of its training script."""
    sys.path.insert(0, str(folder))
    loss_of = importlib.import_module("trades").trades_loss
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]

    def run() -> None:
        net = copy.deepcopy(model).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9)
        for k in range(steps):
            rows = slice(k * BATCH, (k + 1) * BATCH)
            optimizer.zero_grad()
            loss_of(net, x[rows], y[rows], optimizer, STEP, EPS, 10, 6.0).backward()
            optimizer.step()

    return run


def arms(model: nn.Module, data: Any, steps: int, folder: Path | None) -> dict[str, Arm]:
    """What is timed, by name; "bare A" is what A is held against."""
    from assay import defenses

    plan = {"steps": steps, "batch_size": BATCH, "optimizer": "sgd", "lr": 0.01, "eps": EPS}
    ten = {**plan, "attack_steps": 10, "step_size": STEP / EPS}
    x, y = data.x, data.y
    found: dict[str, Arm] = {
        "bare PGD-10": bare(model, x, y, steps, 10, both=False),
        "PGDTraining": ours(defenses.PGDTraining(**ten), model, data),
        "bare TRADES-10": bare(model, x, y, steps, 10, both=True),
        "TRADES": ours(defenses.TRADES(**ten), model, data),
        "bare FGSM": bare(model, x, y, steps, 1, both=False),
        "FGSM": ours(defenses.PGDTraining(**plan, attack_steps=1, step_size=1.25), model, data),
    }
    if folder is not None:
        found["TRADES, the authors'"] = authors(folder, model, x, y, steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trades", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from assay.data import load_data
    from assay.nets import ResNet, SmallCNN
    from assay.runtime.random import seeded

    data = load_data("cifar10", "train").limit(BATCH * given.steps)
    with seeded(0):
        nets = {"SmallCNN": SmallCNN(data.shape, 10, (32, 64, 128), 128), "ResNet-16": ResNet(data.shape, 10, width=16)}
    for net, model in nets.items():
        timed = arms(model, data, given.steps, given.trades)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for run in range(RUNS + 1):
            for name, arm in timed.items():
                begun = time.process_time()
                arm()
                if run:
                    seconds[name].append(time.process_time() - begun)
        for name, values in seconds.items():
            per_second = given.steps / statistics.median(values)
            sys.stdout.write(json.dumps({"net": net, "arm": name, "steps_per_s": round(per_second, 3)}) + "\n")


if __name__ == "__main__":
    main()
