"""AutoAttack side by side: assay, the authors' code and torchattacks on the same weights and images, in one run.

``python bench/autoattack.py [--data digits|cifar10] [--norm linf|l2] [--images N] [--model undefended|robust]``. The
models, their environment and the exchange are those of ``bench/attacks.py``; the authors' code is the repository
fra31/auto-attack. Each implementation runs the standard version once, on one thread;
torchattacks' own takes 10 steps a run where the others take 100. Reports robust accuracy, which member broke how many
samples, CPU time and the peer's over assay's. A peer that cannot be imported is reported as such.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks import CASES, ENVIRONMENT, Net, goal, models
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PEERS = ("autoattack", "torchattacks")
L2_EPS = {"digits": 0.5, "cifar10": 0.5}


def radius(given: argparse.Namespace) -> float:
    """The size of the ball."""
    if given.eps is not None:
        return float(given.eps)
    return CASES[given.data].eps if given.norm == "linf" else L2_EPS[given.data]


def peer_attack(name: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
    """The adversarial images of one peer."""
    found: Tensor
    spelled = {"linf": "Linf", "l2": "L2"}[norm]
    if name == "torchattacks":
        import torchattacks

        attack = torchattacks.AutoAttack(model, norm=spelled, eps=eps, version="standard", n_classes=10, seed=0)
        found = attack(x, y)
        return found
    sys.path.pop(0)  # this file's folder: the peer's package has this file's name
    official = importlib.import_module("autoattack").AutoAttack
    ensemble = official(model, norm=spelled, eps=eps, version="standard", device="cpu", verbose=False, seed=0)
    found = ensemble.run_standard_evaluation(x, y, bs=len(x))
    return found


def run_peer(given: argparse.Namespace) -> None:
    """Inside the peer's environment: attack what lies in its folder and write ``PEER.npz`` there."""
    data, model = np.load(given.folder / "data.npz"), Net(CASES[given.data])
    model.load_state_dict(load_file(given.folder / "model.safetensors"))
    model.eval()
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    start = time.process_time()
    x_adv = peer_attack(given.peer, model, x, y, radius(given), given.norm)
    np.savez(given.folder / f"{given.peer}.npz", x=x_adv.detach().numpy(), seconds=time.process_time() - start)


def ask_peer(name: str, given: argparse.Namespace, folder: Path) -> tuple[Tensor, float] | str:
    """A peer's adversarial images and its seconds, or why there are none."""
    if not given.peer_python.exists():
        return f"no environment at {given.peer_python}"
    command = [str(given.peer_python), __file__, "--peer", name, "--data", given.data, "--norm", given.norm]
    command += ["--eps", str(radius(given))]
    done = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1][:160]
    with np.load(folder / f"{name}.npz") as found:
        return torch.from_numpy(found["x"]), float(found["seconds"])


def compare(label: str, model: nn.Module, x: Tensor, y: Tensor, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an implementation."""
    from assay.attacks import L2, AutoAttack, Linf
    from assay.runtime.inference import predict

    ball = {"linf": Linf, "l2": L2}[given.norm](radius(given))

    def row(name: str, x_adv: Tensor, seconds: float) -> dict[str, Any]:
        robust = float((predict(model, x_adv).argmax(1) == y).float().mean())
        inside = bool((ball.norm(x_adv - x) <= ball.eps + 1e-5).all())
        what = {"data": given.data, "norm": given.norm, "eps": round(ball.eps, 4), "images": len(x), "model": label}
        return {**what, "attack": name, "robust": round(robust, 4), "cpu_s": round(seconds, 2), "inside": inside}

    start = time.process_time()
    result = AutoAttack(ball=ball).run(model, x, goal(y), seed=0, batch_size=len(x))
    rows = [row("assay", result.x_adv, time.process_time() - start)]
    rows[0]["broken_by"] = dict(Counter(result.by))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        for name in given.peers.split(","):
            found = ask_peer(name, given, folder)
            if isinstance(found, str):
                rows.append({"model": label, "attack": name, "not_run": found})
            else:
                rows.append(row(name, *found))
                rows[-1]["peer_over_assay"] = round(found[1] / rows[0]["cpu_s"], 2)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=CASES, default="digits")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--eps", type=float, help="in place of the radius of bench/attacks.py")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--model", choices=("undefended", "robust"))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--peer-python", type=Path, default=ENVIRONMENT)
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peer:
        run_peer(given)
        return
    attacked, x, y = models(given.data)
    for label, model in attacked.items():
        if given.model in (None, label):
            for entry in compare(label, model, x[: given.images], y[: given.images], given):
                sys.stdout.write(json.dumps(entry) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
