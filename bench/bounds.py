"""Linear bounds side by side: assay and auto_LiRPA on the same weights and images, with the same relaxation.

``python bench/bounds.py [--peer-python PATH] [--peer-path FOLDER ...] [--only NET]``. Each arm runs in a process of its
own, so that its peak memory can be read: the growth of the resident set over what the weights and imports take. The
peer's interpreter (bench/peers/bounds/.venv, made from requirements.txt) needs torch and auto_LiRPA, which may also lie
in FOLDER. Reports the largest difference of the bounds on all margins, and CPU time (median of five after one warm-up)
and peak memory as ratios to the peer's. Both run on one thread, in float32, without slack; "adaptive" slopes below
unstable ReLUs on both sides. Interval bounds of assay may be tighter: all linear operators after the last activation
are merged with the margins ("tighter": mean difference).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

ENVIRONMENT = Path(__file__).parent / "peers" / "bounds" / ".venv" / "bin" / "python"
RUNS, EPS = 5, {"mlp": 0.02, "cnn": 0.01, "residual": 0.01, "deep": 0.003}
METHODS = ("IBP", "CROWN-IBP", "CROWN")


class Residual(nn.Module):
    """A convolution, a residual block with batch norm, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(2 * 8 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        g = torch.relu(self.c(torch.relu(self.norm(self.b(h)) + h)))
        return self.head(torch.flatten(torch.cat([g, -g], dim=1), 1))


def network(name: str) -> nn.Module:
    """A network for images (1, 28, 28), the same weights wherever it is made."""
    torch.manual_seed(0)
    if name == "mlp":
        hidden = [m for _ in range(3) for m in (nn.Linear(256, 256), nn.ReLU())]
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), *hidden, nn.Linear(256, 10))
    elif name == "residual":
        net = Residual()
    else:
        maps = [(1, 16), (16, 16), (16, 16), (16, 16)] if name == "deep" else [(1, 16), (16, 32)]
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(maps):
            layers += [nn.Conv2d(a, b, 3, 2 if k in (0, len(maps) - 1) else 1, 1), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(maps[-1][1] * 49, 100), nn.ReLU(), nn.Linear(100, 10))
    return net.eval()


def given(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, images and margins (n, 9, 10) of the predicted class."""
    net, x = network(name), torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    eye = torch.eye(10)
    rows = [[eye[k] - eye[j] for j in range(10) if j != k] for k in y.tolist()]
    return net, x, torch.stack([torch.stack(r) for r in rows]).detach()


def peak() -> float:
    """The largest resident set so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arm(which: str, name: str, method: str, n: int, out: Path) -> None:
    """One side's bounds, time and memory, written to ``out``."""
    torch.set_num_threads(1)
    net, x, C = given(name, n)
    if which == "assay":
        from assay.certify.bounds import LpBall
        from assay.certify.bounds.module import BoundedModule, lower_of

        module = BoundedModule(net, x)

        def bounds() -> Tensor:
            return lower_of(module.run(x, LpBall(eps=EPS[name]), method), C, method)
    else:
        import auto_LiRPA as peer

        module = peer.BoundedModule(net, torch.empty_like(x))
        ball = peer.BoundedTensor(x, peer.PerturbationLpNorm(norm=float("inf"), eps=EPS[name]))

        def bounds() -> Tensor:
            return module.compute_bounds(x=(ball,), C=C, method=method, bound_upper=False)[0]

    with torch.no_grad():
        before, seconds = peak(), []
        warm = bounds().clone()
        for _ in range(RUNS):
            start = time.process_time()
            found = bounds()
            seconds.append(time.process_time() - start)
    assert torch.equal(warm, found)
    torch.save({"bounds": found, "seconds": statistics.median(seconds), "memory": peak() - before}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=str(ENVIRONMENT))
    parser.add_argument("--peer-path", action="append", default=[])
    parser.add_argument("--only", choices=tuple(EPS))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--arm", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        sys.path[:0] = args.peer_path
        which, name, method, out = args.arm
        arm(which, name, method, args.images, Path(out))
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in EPS if args.only is None else (args.only,):
            for method in METHODS:
                found = {}
                for which, python in (("assay", sys.executable), ("peer", args.peer_python)):
                    out = Path(folder) / f"{which}.pt"
                    paths = [f"--peer-path={p}" for p in args.peer_path] if which == "peer" else []
                    command = [python, __file__, *paths, f"--images={args.images}", "--arm", which, name, method, out]
                    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
                    found[which] = torch.load(out, weights_only=True)
                a, b = found["assay"], found["peer"]
                row = {
                    "net": name,
                    "method": method,
                    "difference": (a["bounds"] - b["bounds"]).abs().max().item(),
                    "tighter": (a["bounds"] - b["bounds"]).mean().item(),
                    "scale": b["bounds"].abs().mean().item(),
                    "seconds": round(a["seconds"], 4),
                    "time": round(a["seconds"] / b["seconds"], 2),
                    "megabytes": round(a["memory"]),
                    "memory": round(a["memory"] / max(b["memory"], 1.0), 2),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
