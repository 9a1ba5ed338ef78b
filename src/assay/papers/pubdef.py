"""PubDef: trained on examples of three public models, a network holds against transfer attacks from all seven.

Public are three plain networks, two trained adversarially and two trained on noise, and five attacks. PubDef knows one
network of each kind and one attack, PGD. It is compared with training by PGD on the network itself and with plain
training, for as many epochs from the same weights. What counts is the accuracy under the worst pair of public network
and attack. Exact: the losses of the modes against sums by hand, and the size of the perturbations after rounding to 8
bits. Under PGD on the network itself PubDef is the weaker one: that is not its claim.

The network to defend is a convolution of 16 filters. In pilots smaller ones and one of two layers, as most public ones
are, led training by PGD by 0 to 17 points under the worst pair: they lack the capacity for examples of several kinds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import DIFGSM, FGSM, MIFGSM, PGD, TIFGSM, Linf, Untargeted
from assay.attacks.base import Attack
from assay.data import Data, load_data
from assay.defenses import (
    AdvStore,
    PGDTraining,
    PubDef,
    TAPMEvaluation,
    TAPMResult,
    perturbation_similarity,
)
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.training import State, Supervised

GROUPS = {
    "cnn": "normal",
    "mlp": "normal",
    "deep-mlp": "normal",
    "at-mlp": "adversarial",
    "at-deep-mlp": "adversarial",
    "noise-mlp": "noise",
    "noise-deep-mlp": "noise",
}
KNOWN = ("cnn", "at-mlp", "noise-mlp")  # what PubDef trains on: one of each kind, as the authors picked them by hand
PLAN: dict[str, Any] = {"batch_size": 128, "lr": 4e-3}
ARMS = {"undefended": "undefended", "pgd-at": "PGD training", "pubdef": "PubDef"}

PAPER = Paper(
    slug="pubdef",
    title="PubDef: Defending Against Transfer Attacks From Public Models",
    authors="Chawin Sitawarin, Jaewon Chang, David Huang, Wesson Altoyan, David Wagner",
    year=2023,
    arxiv="2310.17645",
    room="defenses",
    kind="method + benchmark",
    implements=(
        "defenses.PubDef",
        "defenses.TAPMEvaluation",
        "defenses.select_sources",
        "defenses.generate",
        "defenses.perturbation_similarity",
    ),
    claim="Training on a few public models' examples holds against transfer attacks from all, at almost no clean cost.",
    headline="ImageNet: 62% under the best transfer attack, 36% for the best adversarially trained model; clean 78%.",
    peers=("wagner-group/pubdef", "torchattacks", "robustbench"),
    baselines=("undefended", "pgd-at"),
    shams={"random-sign-store": "the stored copies are x + eps times random signs: same eps, number, weights, epochs"},
    scales=(
        Scale("smoke", 1, {"data": "digits:train", "public": 250, "train": 300, "images": 60, "epochs": 4, "further": 4,
                           "steps": 5, "eps": 0.2, "hardening": 0.1, "noise": 0.2, "residual": False}),
        Scale("claim", 5, {"data": "mnist:test", "public": 2000, "train": 3500, "images": 300, "epochs": 8,
                           "further": 6, "steps": 10, "eps": 0.2, "hardening": 0.1, "noise": 0.2, "residual": False}),
        Scale("gpu", 5, {"data": "cifar10:train", "public": 20_000, "train": 20_000, "images": 1000, "epochs": 30,
                         "further": 30, "steps": 10, "eps": 8 / 255, "hardening": 8 / 255, "noise": 0.08,
                         "residual": True}),
    ),
)  # fmt: skip


@cache
def _images(source: str) -> Data:
    return load_data(source)


def _network(data: Data, name: str, scale: Scale, seed: int) -> nn.Module:
    channels, height, width = data.shape
    shape, classes = (channels, height, width), len(data.classes)
    with seeded(derive(seed, name), "init"):
        if scale["residual"]:
            return ResNet(shape, classes, 24 if "deep" in name else 16)
        if name == "target":
            return SmallCNN(shape, classes, (16,), 64)
        if name == "cnn":
            return SmallCNN(shape, classes, (4, 8), 32)
        return MLP(shape, classes, (64, 64) if "deep" in name else (64,))


def _public(data: Data, name: str, scale: Scale, seed: int) -> nn.Module:
    """One public network, trained as its group says."""
    start, epochs, drawn = _network(data, name, scale, seed), scale["epochs"], derive(seed, name)
    if GROUPS[name] == "adversarial":
        hardening = PGDTraining(epochs=epochs, eps=scale["hardening"], attack_steps=3, step_size=0.5, **PLAN)
        return hardening.fit(start, data, seed=drawn)
    trainer = Supervised(epochs=epochs, **PLAN)
    if GROUPS[name] == "normal":
        return trainer.fit(start, data, seed=drawn)

    def noisy(x: Tensor, draws: Draws) -> Tensor:
        return (x + scale["noise"] * draws.normal(*x.shape[1:]).to(x)).clamp(*data.bounds)

    return trainer.fit(start, data, seed=drawn, augment=noisy)


def _attacks(scale: Scale) -> dict[str, Attack]:
    ball, steps = Linf(scale["eps"]), scale["steps"]
    return {
        "pgd": PGD(ball=ball, steps=steps, step_size=1 / 4, early_stop=False),
        "m-pgd": MIFGSM(ball=ball, steps=steps),
        "fgsm": FGSM(ball=ball),
        "di": DIFGSM(ball=ball, steps=steps, momentum=1.0),
        "ti": TIFGSM(ball=ball, steps=steps, momentum=1.0, kernel=5, sigma=1.0),
    }


def _signs(like: AdvStore, data: Data, eps: float, seed: int) -> AdvStore:
    """A store as large, of x + eps times random signs."""
    signs = 2.0 * torch.randint(2, like.kept.shape, generator=torch_rng(seed, "signs")) - 1
    return AdvStore.pack(like.pairs, (data.x + eps * signs).clamp(*data.bounds), data.bounds)


def by_hand(seed: int) -> float:
    """The largest difference of the losses of the modes from sums over pairs and samples, one step after another."""
    g = torch_rng(seed, "modes")
    x = torch.rand(8, 3, 4, generator=g)
    data = Data(x, torch.randint(3, (8,), generator=g), ("a", "b", "c"))
    moved = (x + 0.3 * torch.randn(4, 1, 8, 3, 4, generator=g)).clamp(0, 1)
    store = AdvStore.pack([(s, "pgd") for s in "stuv"], moved, dtype=torch.float32)
    with seeded(seed, "modes"):
        net = MLP((3, 4), 3, (5,))
    each = torch.stack([F.cross_entropy(net(v), data.y, reduction="none") for v in (x, *moved[:, 0])]).detach()
    clean, pairs = each[0].double().numpy(), each[1:].double().numpy()
    average = 0.9 * np.full(4, 0.2) + 0.1 * pairs.mean(1)
    later = 0.9 * average + 0.1 * pairs.mean(1)
    top = [(0.4 * c + 0.15 * sum(sorted(column)[-2:])) / 0.7 for c, column in zip(clean, pairs.T, strict=True)]
    expected = {
        "all": [0.4 * clean.mean() + 0.15 * sum(p.mean() for p in pairs)] * 2,
        "topk": [np.mean(top)] * 2,
        "dynamic": [0.4 * clean.mean() + 0.6 * (a @ pairs.mean(1)) / a.sum() for a in (average, later)],
    }
    worst = 0.0
    for mode in ("all", "topk", "dynamic"):
        method = PubDef(mode=mode, clean_weight=0.4, k=2 if mode == "topk" else None)
        state, batch = State(seed, data, 2), data.batch(torch.arange(8))
        found = [float(method.loss(net, batch, state, store).detach()) for _ in range(2)]
        worst = max(worst, float(np.abs(np.subtract(found, expected[mode])).max()))
    return worst


def _row(arm: str, model: nn.Module, result: TAPMResult, given: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of one network; ``white`` is that under PGD on itself."""
    white: Attack = given["white"]
    x_adv = white.run(model, given["test"].x, given["goal"], seed=0).x_adv
    return {
        "arm": arm,
        "clean": result.clean_accuracy,
        "worst": result.worst_pair(),
        "unseen": result.worst_pair(seen_source=False),
        "worst_sample": result.worst_sample(),
        "mean": result.mean(),
        "white": float((predict(model, x_adv).argmax(1) == given["test"].y).double().mean()),
    }


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The public networks with their examples on test images, the network to defend, and the arms no sham changes."""
    n, k = scale["public"], scale["train"]
    data = _images(scale["data"])
    data = data[torch.randperm(len(data), generator=torch_rng(seed, "parts"))[: n + k + scale["images"]]]
    theirs, ours, test = data[:n], data[n : n + k], data[n + k :]
    public = {name: _public(theirs, name, scale, seed) for name in GROUPS}
    attacks = _attacks(scale)
    evaluation = TAPMEvaluation(public=public, attacks=attacks, seen_sources=KNOWN, seen_attacks=("pgd",))
    start = Supervised(epochs=scale["further"], **PLAN).fit(_network(ours, "target", scale, seed), ours, seed=seed)
    plan = {**PLAN, "epochs": scale["further"]}
    method = PubDef(sources={k: public[k] for k in KNOWN}, attack=attacks["pgd"], **plan)
    given: dict[str, Any] = {"ours": ours, "test": test, "start": start, "method": method, "evaluation": evaluation}
    given["goal"], given["white"] = Untargeted(test.y), attacks["pgd"]
    given["examples"] = evaluation.store(test, seed=derive(seed, "test"))
    given["store"] = method.store(start, ours, seed=derive(seed, "train"))
    at = PGDTraining(eps=scale["eps"], attack_steps=5, step_size=2 / 5, **plan)
    arms = {"undefended": method.plain(), "pgd-at": at}
    given["references"] = [_judged(arm, t.fit(start, ours, seed=seed), given, seed) for arm, t in arms.items()]
    similar = perturbation_similarity(given["examples"], test)
    rounded = given["store"].take(0, 0, slice(None)) - ours.x
    given["checks"] = [
        {"arm": "modes", "difference": by_hand(seed)},
        {"arm": "rounding", "beyond": float(rounded.abs().max()) - scale["eps"]},
        {"arm": "similarity", "first_share": float(similar.shares[0]), "cosine": float(similar.cosine.mean())},
    ]
    return given


def _judged(arm: str, model: nn.Module, given: dict[str, Any], seed: int) -> dict[str, Any]:
    result = given["evaluation"](model, given["test"], seed=seed, store=given["examples"])
    return _row(arm, model, result, given)


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """PubDef on its store, or on random signs, beside the other arms."""
    store: AdvStore = given["store"]
    if sham == "random-sign-store":
        store = _signs(store, given["ours"], scale["eps"], seed)
    model = given["method"].fit(given["start"], given["ours"], seed=seed, store=store)
    return Table.of([_judged("pubdef", model, given, seed), *given["references"], *given["checks"]])


def claims(table: Table) -> list[Claim]:
    """Accuracy under the worst pair and the exact checks decide; clean and white-box accuracy support."""
    return [
        Claim(
            "losses of the modes all, topk and dynamic: largest difference from sums by hand, over two steps",
            table.per_seed("difference"),
            at_most=1e-6,
            rule="exact",
        ),
        Claim(
            "stored perturbations: by how much the largest exceeds eps after rounding to 8 bits",
            table.per_seed("beyond"),
            at_most=1 / 510 + 1e-6,
            rule="exact",
        ),
        Claim(
            "accuracy under the worst pair: PubDef over PGD training",
            table.gain("pubdef", "pgd-at", "worst"),
            at_least=0.05,
            refuted_by=("random-sign-store",),
        ),
        Claim(
            "accuracy under the worst pair of a source not trained on: PubDef over PGD training",
            table.gain("pubdef", "pgd-at", "unseen"),
            at_least=0.05,
            refuted_by=("random-sign-store",),
        ),
        Claim(
            "accuracy under the worst pair: PubDef over plain training",
            table.gain("pubdef", "undefended", "worst"),
            at_least=0.25,
        ),
        Claim(
            "clean accuracy: PubDef over plain training",
            table.gain("pubdef", "undefended", "clean"),
            at_least=-0.04,
            key=False,
        ),
        Claim(
            "clean accuracy: PubDef over PGD training",
            table.gain("pubdef", "pgd-at", "clean"),
            at_least=0.01,
            key=False,
        ),
        Claim(
            "accuracy under PGD on the network itself: PGD training over PubDef",
            table.gain("pgd-at", "pubdef", "white"),
            at_least=0.0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Clean accuracy and that under the worst pair, under unseen sources, and under PGD on the network itself."""
    drawing = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = drawing.subplots()
    columns = {
        "clean": "clean",
        "worst": "worst pair",
        "unseen": "worst pair,\nunseen source",
        "white": "white-box PGD",
    }
    for k, (arm, label) in enumerate(ARMS.items()):
        heights = [table.per_seed(column, arm=arm).mean() for column in columns]
        axes.bar(np.arange(len(columns)) + 0.27 * (k - 1), heights, 0.25, label=label)
    axes.set_xticks(range(len(columns)), list(columns.values()))
    axes.set(ylabel="accuracy", ylim=(0, 1))
    axes.legend(frameon=False)
    return drawing
