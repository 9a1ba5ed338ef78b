"""Distillation from smooth expert trajectories: ten digits, one a class, on which a network trains nearly as well.

Experts on 1,000 digits move less from epoch to epoch when their early loss is clipped, and their trajectories are
matched more closely. What is distilled from them must beat real images, also representative ones, by far. Exact: the
loss of a student that does not move, the gradient back to the images, and the student against torch's own SGD. That AST
exceeds MTT, by a point, is the paper's claim for convolutional networks on CIFAR and is asked at gpu scale alone; for
this network AST may lose six points at most. MTT takes plain SGD steps at its own rate; rates of training on real
images are chosen on other data.

Images move at the rate 0.3, not 1: at 1 the matching loss rises from the 200th iteration on (to 0.46 after 900). On two
pilot seeds the matching loss with clipped experts is 0.83 to 0.97 of that with plain ones, by iteration, where the
bound is 0.9. On seven seeds it was 0.908 [0.879, 0.937], undecided; seeds differ by the experts that they draw; their
number was then set to 32 for every claim. That gave 0.906 [0.890, 0.922]: the effect is there (without it 1, with the
factors inverted 1.36) and is as large as the bound. 32 other seeds gave 0.881 [0.862, 0.8995], which alone would hold;
all 64 have the mean 0.893 [0.881, 0.906]. No number of seeds that can be paid for decides it, so the gpu scale does. It
asks the same of the paper's networks: CIFAR-10, ten images a class, three convolutions of width 128 with instance norm,
50 epochs of experts with gradient penalty 2, and Siamese augmentation. Its images are in [0, 1], a fourth of the
official code's units, so that its rate 100 for them is 6 here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.curate import (
    AST,
    ExpertTrajectories,
    SiameseAugmentation,
    Trajectories,
    TrajectoryMatching,
    evaluate_distilled,
    representative,
)
from assay.data import Data, load_data
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Pilot, Scale, Table
from assay.runtime.inference import pick_device
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.subject import fresh
from assay.training import Plan, fit

EARLY = 10
RATES = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class _Setting:
    """The methods for a data set: experts without penalty, its weight in the arm that has one, both ways to match, what
    both networks are trained with, and by how much AST may lose to MTT."""

    experts: ExpertTrajectories
    penalty: float
    match: AST
    mtt: TrajectoryMatching
    margin: float
    augment: SiameseAugmentation | None = None


DSA = SiameseAugmentation()
SETTINGS = {
    "digits": _Setting(
        ExpertTrajectories(batch_size=64, lr=0.02, gp_weight=0.0),
        0.02,
        AST(max_start=6, lr_start=0.02, lr_img=0.3, lr_lr=1e-5),
        TrajectoryMatching(max_start=6, lr_start=0.1, lr_img=0.3, lr_lr=1e-3),
        -0.06,
    ),
    "cifar10": _Setting(
        ExpertTrajectories(batch_size=256, lr=0.01, gp_weight=0.0, augment=DSA),
        2.0,
        AST(ipc=10, syn_steps=30, max_start=20, lr_start=0.01, lr_img=6.0, lr_lr=1e-5, augment=DSA),
        TrajectoryMatching(ipc=10, syn_steps=30, max_start=20, lr_start=0.01, lr_img=6.0, lr_lr=1e-5, augment=DSA),
        0.01,
        DSA,
    ),
}

PAPER = Paper(
    slug="smooth-expert-distillation",
    title="Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories",
    authors="Jiyuan Shen, Wenzhuo Yang, Kwok-Yan Lam",
    year=2023,
    arxiv="2310.10541",
    room="curate",
    kind="method",
    implements=(
        "curate.AST",
        "curate.TrajectoryMatching",
        "curate.ExpertTrajectories",
        "curate.SiameseAugmentation",
        "curate.evaluate_distilled",
    ),
    claim="Experts whose weights move smoothly are matched more closely, and distil to far better than real images.",
    headline="CIFAR-10/100, Tiny-ImageNet: 1 to 5 points above trajectory matching, most at one image a class.",
    peers=("GeorgeCazenavette/mtt-distillation", "shenjiyuan123/AST-Alignment-with-Smooth-Expert"),
    shams={
        "wrong-target": "the weights to be reached are another expert's than those that the student starts from",
        "inverted-clip": "the cross-entropy of the early epochs is divided by the factors, not multiplied",
    },
    baselines=("random real", "representative real"),
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 300, "test": 300, "width": 0, "experts": 2, "epochs": 8,
                           "iterations": 5, "steps": 20}),
        Scale("claim", 32, {"data": "digits", "train": 1000, "test": 797, "width": 0, "experts": 6, "epochs": 15,
                            "iterations": 300, "steps": 300}),
        Scale("gpu", 5, {"data": "cifar10", "train": 50_000, "test": 10_000, "width": 128, "experts": 10, "epochs": 50,
                         "iterations": 1000, "steps": 1000}),
    ),
    needs_gpu=Pilot(
        "d057c0b09fd32b0b",
        "on digits the matching loss falls to 0.906 (0.890 to 0.922) of the plain experts' over 32 seeds, where 0.9 is "
        "asked; by that spread several hundred seeds would decide, or networks on which the effect is the paper's",
    ),
)  # fmt: skip


class _Inverted(ExpertTrajectories):
    def factor(self, epoch: int) -> float:
        return 1 / super().factor(epoch)


@dataclass(frozen=True, kw_only=True)
class _Strangers(AST):
    """The goals come from another expert."""

    def drawn(self, trajectories: Trajectories, *, seed: int) -> tuple[Tensor, Tensor, int]:
        one, _, t = super().drawn(trajectories, seed=seed)
        same = [torch.equal(one.cpu(), other) for other in trajectories.params_[:, t]]
        others = trajectories.params_[~torch.tensor(same)]
        goal = others[int(numpy_rng(seed, "stranger").integers(len(others)))]
        return one, goal[t + 1 : t + 1 + self.expert_epochs].to(one.device), t


def _fields(method: ExpertTrajectories | AST) -> dict[str, Any]:
    return {f.name: getattr(method, f.name) for f in fields(method)}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _net(scale: Scale, seed: int) -> nn.Module:
    """One hidden layer for digits; where there is a width, three convolutions of it with instance norm and pooling."""
    width = scale["width"]
    with seeded(seed, "net"):
        if not width:
            return MLP((1, 8, 8), 10, (48,))
        blocks = [
            (nn.Conv2d(before, width, 3, padding=1), nn.InstanceNorm2d(width, affine=True), nn.ReLU(), nn.AvgPool2d(2))
            for before in (3, width, width)
        ]
        body = [layer for block in blocks for layer in block]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(width * 16, 10)).to(pick_device())


def _experts(rule: ExpertTrajectories, scale: Scale, data: Data, seed: int) -> Trajectories:
    sized = replace(rule, n=scale["experts"], epochs=scale["epochs"])
    return sized.fit(_net(scale, seed), data, seed=derive(seed, "experts"))


def _expert_row(arm: str, found: Trajectories, test: Data) -> dict[str, Any]:
    """How far the weights move in an early epoch, and the experts' accuracy at the end."""
    right = [(found.logits(last, test.x).argmax(1) == test.y).double().mean() for last in found.params_[:, -1]]
    early = float(found.smoothness()[:EARLY].mean())
    return {"arm": f"experts, {arm}", "change": early, "accuracy": float(torch.stack(right).mean())}


def _evaluated(scale: Scale, x: Tensor, y: Tensor, lr: float, test: Data, seed: int, momentum: float = 0.9) -> float:
    options: dict[str, Any] = {"repeats": 3, "steps": scale["steps"], "momentum": momentum, "seed": seed}
    augment = SETTINGS[scale["data"]].augment
    return evaluate_distilled(x, y, lr, _net(scale, seed), test, augment=augment, **options)[0]


def _distilled(
    arm: str, rule: TrajectoryMatching, experts: Trajectories, scale: Scale, data: Data, test: Data, seed: int
) -> dict[str, Any]:
    """Accuracy after training on what is distilled, and the matching loss over the last third of the iterations."""
    found = replace(rule, iterations=scale["iterations"]).fit(experts, data, seed=seed)
    momentum = 0.9 if isinstance(rule, AST) else 0.0
    accuracy = _evaluated(scale, found.x_syn_, found.y_syn_, found.lr_, test, seed, momentum)
    last = found.history_[-max(len(found.history_) // 3, 1) :].mean()
    return {"arm": arm, "accuracy": accuracy, "loss": float(last), "rate": found.lr_}


def _real(arm: str, rows: Tensor, scale: Scale, data: Data, held: Data, test: Data, seed: int) -> dict[str, Any]:
    """Accuracy after training on these real images, at the rate that is best on held-out data."""
    x, y = data.x[rows], data.y[rows]
    best = max(RATES, key=lambda lr: _evaluated(scale, x, y, lr, held, seed))
    return {"arm": arm, "accuracy": _evaluated(scale, x, y, best, test, seed), "rate": best}


def _small(seed: int) -> tuple[Trajectories, Tensor, Tensor]:
    """Trajectories of random weights of a small network in double precision, four images and their labels."""
    with seeded(seed, "small"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    g = torch_rng(seed, "small")
    params = torch.randn(2, 5, sum(p.numel() for p in model.parameters()), generator=g, dtype=torch.float64)
    return Trajectories(params, model), torch.rand(4, 1, 3, 3, generator=g, dtype=torch.float64), torch.arange(4) % 2


def exact_checks(seed: int) -> dict[str, float]:
    """A student that does not move, its gradient by differences, torch's SGD, the balance, and no perturbation."""
    trajectories, x, y = _small(seed)
    rule = AST(max_start=3, expert_epochs=2, syn_steps=3, intermediate=None)
    lr = torch.tensor(0.1, dtype=torch.float64)
    still = replace(rule, syn_steps=0).objective(trajectories, x, y, lr, seed=seed).detach()
    full = replace(rule, intermediate="agg", syn_steps=4)
    leaf = x.clone().requires_grad_(True)
    full.objective(trajectories, leaf, y, lr, seed=seed).backward()
    assert leaf.grad is not None
    differences = []
    for k in range(0, 36, 5):
        e = torch.zeros(36, dtype=x.dtype)
        e[k] = 1e-5
        up, down = (full.objective(trajectories, x + s * e.view_as(x), y, lr, seed=seed) for s in (1, -1))
        differences.append(float((up - down).detach() / 2e-5 - leaf.grad.flatten()[k]))
    start = trajectories.params_[0, 0]
    factors = [AST(max_start=20).factor(t) for t in (0, 10)]
    return {
        "still": abs(float(still) - 1),
        "gradient": float(np.abs(differences).max() / leaf.grad.abs().max()),
        "sgd": _against_sgd(rule, trajectories, start, x, y, seed),
        "balance": max(abs(factors[0] * np.log(18) / np.log(5) - 1), abs(factors[1] - np.log(8) / np.log(5))),
        "unmoved": float((replace(rule, perturb=0.0).perturbed(trajectories, start, seed=seed) - start).abs().max()),
    }


def _against_sgd(rule: AST, trajectories: Trajectories, start: Tensor, x: Tensor, y: Tensor, seed: int) -> float:
    """Largest difference of the student's weights after three steps from torch's SGD with momentum."""
    lr = torch.tensor(0.1, dtype=torch.float64)
    plain = replace(rule, balance=False, syn_steps=3)
    found = plain.students(trajectories, start, x, y, lr, 0, seed=seed)[-1].detach()
    model = fresh(trajectories.model, seed=seed)
    model.load_state_dict(trajectories.unflat(start))
    plan = Plan(steps=3, batch_size=4, optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), schedule="constant")
    data = Data(x, y, ("a", "b"))
    other = fit(model, data, lambda net, batch, state: F.cross_entropy(net(batch.x), batch.y), plan, seed=seed)
    return float((torch.cat([p.detach().flatten() for p in other.parameters()]) - found).abs().max())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Data, the experts of the plain rules, and the arms that no sham changes."""
    whole, held = _images(scale["data"])
    setting = SETTINGS[scale["data"]]
    ipc, match = setting.match.ipc, setting.match
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    plain = _experts(replace(setting.experts, clip_schedule=None), scale, train, seed)
    clipped = _experts(setting.experts, scale, train, seed)
    both = _experts(replace(setting.experts, gp_weight=setting.penalty), scale, train, seed)
    order = torch.randperm(len(train), generator=torch_rng(seed, "real"))
    random = torch.cat([order[train.y[order] == c][:ipc] for c in range(10)])
    near = representative(plain, train, ipc, seed=seed)
    tune = train[order[-(len(train) // 3) :]].without(train.index[near])
    given: dict[str, Any] = {"train": train, "test": test, "clipped": clipped}
    given["ast"] = _distilled("ast", match, clipped, scale, train, test, seed)
    given["rows"] = [
        _real("random real", random, scale, train, tune, test, seed),
        _real("representative real", near, scale, train, tune, test, seed),
        _distilled("ast, plain experts", match, plain, scale, train, test, seed),
        _distilled("ast, clip and penalty", match, both, scale, train, test, seed),
        _distilled("mtt, plain experts", setting.mtt, plain, scale, train, test, seed) | {"margin": setting.margin},
        _expert_row("plain", plain, test),
        _expert_row("clip and penalty", both, test),
        {"arm": "exact", **exact_checks(seed)},
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The clipped experts and what is distilled from them."""
    train, test, experts, row = (given[k] for k in ("train", "test", "clipped", "ast"))
    setting = SETTINGS[scale["data"]]
    if sham == "inverted-clip":
        inverted = _Inverted(**_fields(setting.experts))
        experts = _experts(inverted, scale, train, seed)
        row = _distilled("ast", setting.match, experts, scale, train, test, seed)
    if sham == "wrong-target":
        strangers = _Strangers(**_fields(setting.match))
        row = _distilled("ast", strangers, experts, scale, train, test, seed)
    return Table.of([*given["rows"], row, _expert_row("clipped", experts, test)])


def claims(table: Table) -> list[Claim]:
    """The gain over real images, the closeness of matching, and the exact checks decide."""
    loss, plain = (table.per_seed("loss", arm=a) for a in ("ast", "ast, plain experts"))
    change, before = (table.per_seed("change", arm=f"experts, {a}") for a in ("clipped", "plain"))
    checks = (
        ("a student that takes no step has loss 1: difference", "still", 1e-12),
        ("gradient of the loss in the images against central differences: relative difference", "gradient", 1e-5),
        ("the student's steps are those of torch's SGD with momentum: largest difference", "sgd", 1e-12),
        ("balance at t = 0 and at the middle is 1 / log_5 18 and log_5 8: difference", "balance", 1e-12),
        ("without strength nothing is perturbed: largest difference", "unmoved", 0.0),
    )
    return [
        Claim(
            "accuracy from one distilled image a class (AST, clipped experts) less that from representative real ones",
            table.gain("ast", "representative real", "accuracy"),
            at_least=0.08,
            refuted_by=("wrong-target",),
        ),
        Claim(
            "final matching loss with clipped experts over that with plain ones, the same AST",
            loss / plain,
            at_most=0.9,
            refuted_by=("inverted-clip",),
        ),
        *(Claim(text, table.per_seed(c, np.max), at_most=bound, rule="exact") for text, c, bound in checks),
        Claim(
            "accuracy from AST less that from random real images",
            table.gain("ast", "random real", "accuracy"),
            at_least=0.15,
            key=False,
        ),
        Claim(
            "relative change of the experts' weights in the first ten epochs, clipped over plain",
            change / before,
            at_most=0.95,
            key=False,
            refuted_by=("inverted-clip",),
        ),
        Claim(
            "accuracy of clipped experts less that of plain ones",
            table.gain("experts, clipped", "experts, plain", "accuracy"),
            at_least=-0.01,
            key=False,
        ),
        Claim(
            "accuracy from AST less that from MTT with plain experts (the paper's networks: above 0)",
            table.gain("ast", "mtt, plain experts", "accuracy"),
            at_least=float(table.values("margin", arm="mtt, plain experts")[0]),
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Accuracy after training on ten images, and how far the experts move in early epochs."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    arms = ("random real", "representative real", "ast", "ast, clip and penalty")
    both = (*arms, "ast, plain experts", "mtt, plain experts")
    for axes, names, column in ((left, both, "accuracy"), (right, ("plain", "clip and penalty", "clipped"), "change")):
        runs = [table.per_seed(column, arm=a if column == "accuracy" else f"experts, {a}") for a in names]
        axes.bar(range(len(names)), [r.mean() for r in runs], color="0.75")
        for k, run in enumerate(runs):
            axes.plot(np.full(len(run), k), run, "o", ms=3, color="0.3")
        axes.set_xticks(range(len(names)), [n.replace(", ", ",\n") for n in names], rotation=30)
    left.set(title="Accuracy from one image a class", ylim=(0, 1))
    right.set(title="Relative change in an early epoch")
    return drawing
