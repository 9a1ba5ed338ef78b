"""PGD-20 side by side: assay, torchattacks, foolbox and ART on the same weights and images, in one run.

``python bench/attacks.py [--data digits|cifar10] [--peer-python PATH]``; cifar10 (8/255) needs ASSAY_DATA. With
``--resnet`` only the engine's overhead on a ResNet of width 16 and 128 CIFAR-10 images is measured. Peers run
in a subprocess of their own environment (bench/peers/attacks/.venv, made from requirements.txt) and exchange npz and
safetensors. Reports robust accuracy, CPU time (median of five after one warm-up) and its ratio to the peer's, for an
undefended and an adversarially trained model; then the engine's overhead: its time over that of bare passes through the
same recorded batch shapes. A peer that cannot be imported is reported as such.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEPS, RUNS = 20, 5
PEERS = ("torchattacks", "foolbox", "art")
ENVIRONMENT = Path(__file__).parent / "peers" / "attacks" / ".venv" / "bin" / "python"


def timed(attack: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The attack's result and the median of its CPU seconds."""
    result, seconds = attack(), []
    for _ in range(RUNS):
        start = time.process_time()
        result = attack()
        seconds.append(time.process_time() - start)
    return result, statistics.median(seconds)


@dataclass(frozen=True)
class Case:
    """What is attacked: the shape of its images, the network's sizes, the radius, and how many images."""

    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    hidden: int
    eps: float
    images: int

    @property
    def step(self) -> float:
        """The length of a step: 2.5 eps / steps."""
        return 2.5 * self.eps / STEPS


CASES = {
    "digits": Case((1, 8, 8), (16, 32), 64, 0.1, 512),
    "cifar10": Case((3, 32, 32), (32, 64, 128), 128, 8 / 255, 1000),
}


class Net(nn.Module):
    """The same network as assay's SmallCNN, in plain torch, for the peers' environment."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        channels, side, _ = case.shape
        layers: list[nn.Module] = []
        for k, width in enumerate(case.widths):
            stride = 1 if k == 0 and side <= 8 else 2
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
            channels, side = width, -(-side // stride)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, case.hidden), nn.ReLU())
        self.head = nn.Linear(case.hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def peer_attack(name: str, case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """PGD-20 of one peer as a function without arguments."""
    if name == "torchattacks":
        import torchattacks

        pgd = torchattacks.PGD(model, eps=case.eps, alpha=case.step, steps=STEPS, random_start=True)
        return lambda: pgd(x, y)
    if name == "foolbox":
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(rel_stepsize=case.step / case.eps, steps=STEPS, random_start=True)
        return lambda: attack(wrapped, x, y, epsilons=case.eps)[1]
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0))
    options: dict[str, Any] = {"eps": case.eps, "eps_step": case.step, "max_iter": STEPS, "num_random_init": 1}
    art = ProjectedGradientDescentPyTorch(estimator, batch_size=len(x), verbose=False, **options)
    return lambda: torch.from_numpy(art.generate(x.numpy(), y.numpy()))


def run_peer(name: str, case: Case, folder: Path) -> None:
    """Inside the peer's environment: attack what lies in ``folder`` and write ``NAME.npz`` there."""
    torch.manual_seed(0)
    given, model = np.load(folder / "data.npz"), Net(case)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    x_adv, seconds = timed(peer_attack(name, case, model, torch.from_numpy(given["x"]), torch.from_numpy(given["y"])))
    np.savez(folder / f"{name}.npz", x=x_adv.detach().numpy(), seconds=seconds)


def ask_peer(name: str, data: str, python: Path, folder: Path) -> tuple[Tensor, float] | str:
    """A peer's adversarial images and its seconds, or why there are none."""
    if not python.exists():
        return f"no environment at {python}"
    command = [str(python), __file__, "--peer", name, "--data", data, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1][:160]
    with np.load(folder / f"{name}.npz") as found:
        return torch.from_numpy(found["x"]), float(found["seconds"])


def adversarially_trained(model: nn.Module, data: Any, eps: float, epochs: int) -> nn.Module:
    """The model trained on PGD-5 points of itself (Madry et al., 2018)."""
    from assay.attacks import PGD, Linf
    from assay.training import Plan, fit

    pgd = PGD(ball=Linf(eps), steps=5, early_stop=False)

    def objective(net: nn.Module, batch: Any, state: Any) -> Tensor:
        x = pgd(net, batch.x, batch.y, seed=state.step, index=batch.index)
        return nn.functional.cross_entropy(net(x), batch.y)

    return fit(model, data, objective, Plan(epochs=epochs), seed=0)


def overhead(model: nn.Module, attack: Any, x: Tensor, y: Tensor) -> float:
    """The engine's CPU time over that of bare passes through the batches that it ran: the median of five pairs."""
    sizes: list[tuple[int, bool]] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append((len(inputs[0]), inputs[0].requires_grad)))
    attack(model, x, y, seed=0)
    handle.remove()
    for p in model.parameters():
        p.requires_grad_(False)

    def replay() -> None:
        for n, backward in sizes:
            with torch.set_grad_enabled(backward):
                z = x[:n].requires_grad_(backward)
                loss = model(z).sum()
                if backward:
                    torch.autograd.grad(loss, z)

    ratios = []
    for _ in range(RUNS + 1):
        begun = time.process_time()
        attack(model, x, y, seed=0)
        middle = time.process_time()
        replay()
        ratios.append((middle - begun) / (time.process_time() - middle))
    return statistics.median(ratios[1:])


def compare(label: str, data: str, model: nn.Module, x: Tensor, y: Tensor, python: Path) -> list[dict[str, Any]]:
    """One row an implementation."""
    from assay.attacks import PGD, Linf
    from assay.runtime.inference import predict

    case = CASES[data]

    def row(name: str, x_adv: Tensor, seconds: float) -> dict[str, Any]:
        inside = bool((x_adv - x).abs().max() <= case.eps + 1e-5)
        robust = float((predict(model, x_adv).argmax(1) == y).float().mean())
        return {
            "data": data,
            "model": label,
            "attack": name,
            "robust": robust,
            "cpu_s": round(seconds, 4),
            "inside": inside,
        }

    rows = []
    for name, early in (("assay", True), ("assay, all steps", False)):
        attack = PGD(ball=Linf(case.eps), steps=STEPS, early_stop=early)
        x_adv, seconds = timed(lambda a=attack: a.run(model, x, goal(y), seed=0, batch_size=len(x)).x_adv)
        rows.append(row(name, x_adv, seconds))
        rows[-1]["overhead"] = round(overhead(model, attack, x, y), 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        for name in PEERS:
            found = ask_peer(name, data, python, folder)
            if isinstance(found, str):
                rows.append({"model": label, "attack": name, "not_run": found})
            else:
                rows.append(row(name, *found))
                rows[-1]["assay_over_peer"] = round(rows[0]["cpu_s"] / found[1], 3)
                rows[-1]["assay_all_steps_over_peer"] = round(rows[1]["cpu_s"] / found[1], 3)
    return rows


def goal(y: Tensor) -> Any:
    """Anything but the true class."""
    from assay.attacks import Untargeted

    return Untargeted(y)


def models(data: str) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    """An undefended and an adversarially trained model, and the images and labels that they are attacked on."""
    import assay
    from assay.data import load_data
    from assay.nets import SmallCNN
    from assay.runtime.random import seeded
    from assay.training import Supervised

    case = CASES[data]
    if data == "digits":
        subject = assay.load("digits")
        plain, train, test, epochs = subject.model, subject.train, subject.test, 20
    else:
        train, test, epochs = load_data(data, "train").limit(10_000), load_data(data), 4
        with seeded(0):
            net = SmallCNN(case.shape, 10, case.widths, case.hidden)
        plain = Supervised(epochs=8).fit(net, train, seed=0)
    robust = adversarially_trained(plain, train, case.eps, epochs)
    return {"undefended": plain, "robust": robust}, test.x[: case.images], test.y[: case.images]


def on_resnet() -> list[dict[str, Any]]:
    """The engine's overhead on a ResNet, trained on 1,500 CIFAR-10 images, with and without early stop."""
    from assay.attacks import PGD, Linf
    from assay.data import load_data
    from assay.nets import ResNet
    from assay.runtime.random import seeded
    from assay.training import Supervised

    test = load_data("cifar10").limit(128)
    with seeded(0):
        net = ResNet((3, 32, 32), 10, 16)
    net = Supervised(epochs=2).fit(net, load_data("cifar10", "train").limit(1500), seed=0)
    rows = []
    for name, early in (("assay", True), ("assay, all steps", False)):
        attack = PGD(ball=Linf(8 / 255), steps=STEPS, early_stop=early)
        ratio = overhead(net, attack, test.x, test.y)
        rows.append({"data": "cifar10", "model": "ResNet-16", "attack": name, "overhead": round(ratio, 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resnet", action="store_true")
    parser.add_argument("--data", choices=CASES, default="digits")
    parser.add_argument("--peer-python", type=Path, default=ENVIRONMENT)
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peer:
        run_peer(given.peer, CASES[given.data], given.folder)
        return
    if given.resnet:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in on_resnet())
        return
    attacked, x, y = models(given.data)
    for label, model in attacked.items():
        for entry in compare(label, given.data, model, x, y, given.peer_python):
            sys.stdout.write(json.dumps(entry) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
