"""Integrated gradients and SmoothGrad beside captum, which runs in an environment of its own.

    python -m venv PEER && PEER/bin/pip install -r bench/peers/explain/requirements.txt
    python bench/explain.py --peer PEER/bin/python

Both sides load the same weights (safetensors) and inputs (npz). Integrated gradients are compared value by value, with
the same rule and steps. captum draws its SmoothGrad noise from torch's global generator, so the peer's NoiseTunnel is
handed assay's very draws in place of that generator's: the values are compared as well, not only their expectation.
Times are the best of several runs on one thread, each side in its own process.
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
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEPS, SAMPLES, NOISE, BATCH, REPEATS = 50, 20, 0.1, 256, 5


def network() -> nn.Module:
    """A small CNN both sides can build."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result and the best time in seconds."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        out = run()
        seconds.append(time.perf_counter() - start)
    return out, min(seconds)


def peer(folder: Path) -> None:
    """captum's side: reads the exchange folder, writes its attributions and times back."""
    from captum.attr import IntegratedGradients, NoiseTunnel, Saliency

    model = network()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    with np.load(folder / "inputs.npz") as given:
        x, y, noise = (torch.from_numpy(given[k]) for k in ("x", "y", "noise"))
    ig, tunnel, normal = IntegratedGradients(model), NoiseTunnel(Saliency(model)), torch.normal
    a, ig_seconds = timed(
        lambda: ig.attribute(x, target=y, n_steps=STEPS, method="gausslegendre", internal_batch_size=BATCH).detach()
    )

    def smooth() -> Tensor:
        return tunnel.attribute(
            x, nt_type="smoothgrad", nt_samples=SAMPLES, stdevs=NOISE, target=y, abs=False, nt_samples_batch_size=BATCH
        ).detach()

    _, sg_seconds = timed(smooth)
    torch.normal = lambda *args, **kwargs: noise.flatten(0, 1)  # captum adds it to the repeated x
    try:
        b = smooth()
    finally:
        torch.normal = normal
    np.savez(folder / "captum.npz", ig=a.numpy(), sg=b.numpy(), ig_seconds=ig_seconds, sg_seconds=sg_seconds)


def compare(python: str, n: int) -> dict[str, dict[str, float]]:
    """Largest difference (relative to the largest attribution) and time ratio of each method."""
    from assay.data import load_data
    from assay.explain import IntegratedGradients, SmoothGrad
    from assay.runtime.random import Draws, seeded

    data = load_data("digits:test")[:n]
    # assay scales the noise by each sample's range; one white and one black pixel make that 1, captum's stdevs exactly
    x = data.x.clone()
    x[:, :, 0, 0], x[:, :, 0, 1] = 0.0, 1.0
    with seeded(0, "bench"):
        model = network().eval()
    target = model(x).argmax(1)
    noise = NOISE * Draws(0, "explain.SmoothGrad", torch.arange(n)).normal(SAMPLES, *x.shape[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(model.state_dict(), folder / "model.safetensors")
        np.savez(folder / "inputs.npz", x=x.numpy(), y=target.numpy(), noise=noise.numpy())
        subprocess.run([python, __file__, "--serve", str(folder)], check=True)
        with np.load(folder / "captum.npz") as archive:
            theirs = dict(archive)
    ours = {
        "ig": timed(
            lambda: IntegratedGradients(steps=STEPS, batch_size=BATCH).attribute(model, x, target, seed=0),
        ),
        "sg": timed(
            lambda: SmoothGrad(samples=SAMPLES, noise=NOISE, batch_size=BATCH).attribute(model, x, target, seed=0),
        ),
    }
    rows = {}
    for key, (a, seconds) in ours.items():
        gap = np.abs(a.numpy() - theirs[key]).max() / np.abs(theirs[key]).max()
        other = float(theirs[f"{key}_seconds"])
        rows[key] = {"difference": float(gap), "assay_s": seconds, "captum_s": other, "ratio": seconds / other}
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable, help="the python of captum's environment")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.serve is not None:
        peer(options.serve)
        return 0
    rows = compare(options.peer, options.n)
    print(json.dumps(rows, indent=1))
    return 0 if all(row["difference"] <= 1e-5 for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
