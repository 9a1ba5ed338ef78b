"""Output layers side by side: CPU time of a training step against the number of classes.

``python bench/output_layers.py [--classes 1000 10000 100000] [--width 64] [--batch 16] [--steps 50]``. Each arm takes
plain SGD steps on the same hidden layers and labels, float32, one thread, in turn; the median CPU time of one counts,
after five steps to warm up. "implicit" is assay's SphericalLinear under the Z-loss; "dense Z-loss" and "dense softmax"
compute all scores with torch; "adaptive softmax" is torch.nn.AdaptiveLogSoftmaxWithLoss with cut-offs at C / 10 and
C / 2 (labels are drawn by Zipf's law, which it is made for). Every step gives the gradient in the hidden layer too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.losses import SphericalLinear, ZLoss
from assay.runtime.random import numpy_rng, torch_rng

WARM = 5
Step = Callable[[Tensor, Tensor], object]


def dense(width: int, classes: int, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """SGD on all scores."""
    weight = torch.randn(classes, width, generator=torch_rng(0, "dense")) / width**0.5
    weight.requires_grad_()
    optimizer = torch.optim.SGD([weight], 0.1)

    def step(h: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss(h @ weight.T, y).backward()
        optimizer.step()

    return step


def adaptive(width: int, classes: int) -> Step:
    """SGD on torch's adaptive softmax."""
    layer = nn.AdaptiveLogSoftmaxWithLoss(width, classes, [classes // 10, classes // 2])
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)

    def step(h: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        layer(h, y).loss.backward()
        optimizer.step()

    return step


def implicit(width: int, classes: int) -> Step:
    """assay's layer, whose step gives the gradient in h by itself."""
    layer = SphericalLinear(width, classes, dtype="float32")
    return lambda h, y: layer.step(h.detach(), y)


def timed(step: Step, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The median CPU time of a step, in seconds."""
    spent = []
    for k, (h, y) in enumerate(batches):
        h = h.clone().requires_grad_()
        begun = time.process_time()
        step(h, y)
        if k >= WARM:
            spent.append(time.process_time() - begun)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for classes in given.classes:
        rng = numpy_rng(0, "bench", classes)
        share = 1 / np.arange(1, classes + 1)
        labels = rng.choice(classes, (given.steps + WARM, given.batch), p=share / share.sum())
        hidden = torch.from_numpy(rng.normal(size=(given.steps + WARM, given.batch, given.width))).float()
        batches = [(h / given.width**0.5, torch.from_numpy(y)) for h, y in zip(hidden, labels, strict=True)]
        arms = {
            "implicit": implicit(given.width, classes),
            "dense Z-loss": dense(given.width, classes, ZLoss()),
            "dense softmax": dense(given.width, classes, F.cross_entropy),
            "adaptive softmax": adaptive(given.width, classes),
        }
        for name, step in arms.items():
            row = {"classes": classes, "arm": name, "ms": round(1e3 * timed(step, batches), 4)}
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
