"""ECE, NLL and Brier score beside torchmetrics, which runs in an environment of its own.

    python -m venv PEER && PEER/bin/pip install -r bench/peers/calibration/requirements.txt
    python bench/calibration.py --peer PEER/bin/python

Both sides read the same probabilities (npz). torchmetrics has no NLL and no Brier score of classes: its perplexity's
logarithm and its squared error over one-hot labels, times the number of classes, are the same quantities. Times are the
best of several runs on one thread, each side in its own process. Exit code 1 when a value differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SAMPLES, CLASSES, REPEATS, TOLERANCE = 50_000, 10, 5, 1e-5


def timed(run: Callable[[], float]) -> dict[str, float]:
    """The value and the best time in seconds."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        value = float(run())
        seconds.append(time.perf_counter() - start)
    return {"value": value, "seconds": min(seconds)}


def peer(folder: Path) -> None:
    """torchmetrics' side."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error
    from torchmetrics.functional.regression import mean_squared_error
    from torchmetrics.functional.text import perplexity

    torch.set_num_threads(1)
    with np.load(folder / "data.npz") as archive:
        p, y = torch.from_numpy(archive["p"]), torch.from_numpy(archive["y"])
    onehot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    results = {
        "ece": timed(lambda: multiclass_calibration_error(p, y, p.shape[1], n_bins=15, norm="l1")),
        "nll": timed(lambda: perplexity(p.log()[None], y[None]).log()),
        "brier": timed(lambda: mean_squared_error(p.flatten(), onehot.flatten()) * p.shape[1]),
    }
    (folder / "peer.json").write_text(json.dumps(results))


def main() -> int:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the python of the peer's environment")
    arguments = parser.parse_args()
    from assay.calibrate.measures import brier, ece, nll

    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(SAMPLES, CLASSES))
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    y = (rng.random((SAMPLES, 1)) < p.cumsum(1)).argmax(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", p=p, y=y)
        subprocess.run([arguments.peer, __file__, "--side", str(folder)], check=True)
        theirs = json.loads((folder / "peer.json").read_text())
    worst = 0.0
    for label, measure in {"ece": ece, "nll": nll, "brier": brier}.items():
        ours = timed(lambda measure=measure: measure(p, y))
        difference = abs(ours["value"] - theirs[label]["value"])
        worst = max(worst, difference)
        ratio = ours["seconds"] / theirs[label]["seconds"]
        print(f"{label:6s} assay {ours['value']:.8f}  difference {difference:.1e}  time assay/torchmetrics {ratio:.2f}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        peer(Path(sys.argv[2]))
    else:
        sys.exit(main())
