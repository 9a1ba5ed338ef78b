"""Confident learning beside cleanlab: the same flags, and the time of each.

    python bench/labels.py PEER_PYTHON [--n 50000] [--classes 100]

PEER_PYTHON is an interpreter with bench/peers/labels/requirements.txt installed; arrays are exchanged as npz. Each rule
is compared twice. ``different`` counts the flags that differ as both sides come: they do where n Q is made whole. Cells
of a row with equal counts have equal remainders, and which of them is rounded up is open; the peer's sort is unstable
and its remainders carry rounding errors, ours are exact integers. ``different_on_our_counts`` hands our whole numbers
to the peer (its argument ``confident_joint``): nothing else differs, so it is 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from assay.labels import ConfidentLearning
from assay.runtime.random import numpy_rng

RULES = {
    "noise-rate": "prune_by_noise_rate",
    "class": "prune_by_class",
    "both": "both",
    "off-diagonal": "confident_learning",
}
PEER = """
import sys, time, warnings
import numpy as np
from cleanlab.filter import find_label_issues
warnings.simplefilter("ignore")
given = np.load(sys.argv[1])
joint, out = given["joint"], {}
for rule in sys.argv[3:]:
    seconds = []
    for _ in range(5):
        start = time.process_time()
        out[rule] = find_label_issues(given["labels"], given["probs"], filter_by=rule, n_jobs=1)
        seconds.append(time.process_time() - start)
    out[rule + "|seconds"] = sorted(seconds)[2]
    out[rule + "|ours"] = find_label_issues(
        given["labels"], given["probs"], filter_by=rule, n_jobs=1, confident_joint=joint
    )
np.savez(sys.argv[2], **out)
"""


def problem(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with a tenth flipped to any class, and soft probabilities of the true ones."""
    rng = numpy_rng(seed, "bench labels")
    true = rng.integers(0, classes, n)
    labels = np.where(rng.random(n) < 0.1, rng.integers(0, classes, n), true)
    logits = rng.normal(size=(n, classes)) + 5 * np.eye(classes)[true]
    probs = np.exp(logits - logits.max(1, keepdims=True))
    return labels, probs / probs.sum(1, keepdims=True)


def main() -> None:
    """Run both sides on one problem and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    labels, probs = problem(args.n, args.classes, args.seed)
    finders = {rule: ConfidentLearning(prune=rule, collisions="any") for rule in RULES}  # type: ignore[arg-type]
    joint = finders["noise-rate"].fit(labels, probs).calibrated_joint_
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "given.npz"), Path(folder, "answer.npz")
        np.savez(given, labels=labels, probs=probs, joint=joint)
        subprocess.run([args.peer, "-c", PEER, given, answer, *RULES.values()], check=True)
        peer = dict(np.load(answer))
    rows = []
    for rule, name in RULES.items():
        timed = []
        for _ in range(5):
            start = time.process_time()
            found = finders[rule].fit(labels, probs).suspects_
            timed.append(time.process_time() - start)
        seconds, theirs = statistics.median(timed), float(peer[f"{name}|seconds"])
        rows.append(
            {
                "rule": rule,
                "flags": int(found.sum()),
                "peer_flags": int(peer[name].sum()),
                "different": int((found != peer[name]).sum()),
                "different_on_our_counts": int((found != peer[f"{name}|ours"]).sum()),
                "seconds": round(seconds, 3),
                "peer_seconds": round(theirs, 3),
                "times_faster": round(theirs / seconds, 2),
            }
        )
    print(json.dumps({"n": args.n, "classes": args.classes, "peer": "cleanlab", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
