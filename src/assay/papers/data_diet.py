"""Data diet: scores of a few short runs say which samples to train on, and which labels are wrong.

A small network is trained for the same number of steps on all samples, and on the hardest, the easiest and random
subsets by EL2N. Exact: the scores of a tiny diet recomputed sample by sample, GraNd of a linear model in closed form
and by three methods. Support: label noise and the offset, stability, the limit at a tenth of the data. What the paper
says of GraNd before any training is left out: it did not reproduce (Kirsch, 2023, arXiv:2303.14753).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.curate import DataDiet, el2n_scores, forget_scores, grand_scores, offset_subset
from assay.data import Data, load_data
from assay.dynamics import linear_mode_barrier
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import device_of, pick_device, predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.runtime.statistics import point
from assay.subject import fresh
from assay.training import Supervised, Trainer

NOISE = 0.1
NOISY_KEEP = 0.4
ADAM = {"optimizer": "adam", "batch_size": 128}
SGD = {"optimizer": "sgd", "batch_size": 128, "weight_decay": 5e-4}

PAPER = Paper(
    slug="data-diet",
    title="Deep Learning on a Data Diet: Finding Important Examples Early in Training",
    authors="Mansheej Paul, Surya Ganguli, Gintare Karolina Dziugaite",
    year=2021,
    arxiv="2107.07075",
    room="curate",
    also=("dynamics",),
    kind="method + measure",
    implements=(
        "curate.DataDiet",
        "curate.el2n_scores",
        "curate.grand_scores",
        "curate.forget_scores",
        "curate.ForgettingTracker",
        "curate.prune_by_score",
        "curate.offset_subset",
        "dynamics.linear_mode_barrier",
        "dynamics.ntk_submatrix_velocity",
    ),
    claim="Trained on the samples with the highest EL2N a network gets further than on as many random or easy ones.",
    headline="CIFAR-10, ResNet-18: half the samples by EL2N at epoch 20 lose no accuracy; CIFAR-100: three quarters.",
    peers=("mansheej/data_diet", "DeepCore"),
    shams={
        "misaligned-scores": "the scores are written back in the order of a shuffled loader: they belong to others",
        "untrained-scores": "the same networks score before their first step; their training is thrown away",
    },
    baselines=("random 0.5", "random 0.25"),
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "train": 400, "test": 300, "pool": 1, "net": (4, 8), "hidden": 16, "models": 2}
            | {"scoring": 20, "scoring_lr": 5e-3, "steps": 25, "lr": 5e-3},
        ),
        Scale(
            "claim",
            10,
            {"data": "mnist", "train": 20_000, "test": 5000, "pool": 2, "net": (8, 16), "hidden": 64, "models": 4}
            | {"scoring": 240, "scoring_lr": 3e-3, "steps": 800, "lr": 5e-3},
        ),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "train": 50_000, "test": 10_000, "pool": 1, "net": None, "hidden": 64, "models": 10}
            | {"scoring": 20 * 391, "scoring_lr": 0.1, "steps": 200 * 391, "lr": 0.1},
        ),
    ),
)


@cache
def _images(source: str, pool: int) -> tuple[Data, Data]:
    parts = load_data(source, "train"), load_data(source, "test")
    train, test = (part.with_x(F.avg_pool2d(part.x, pool)) if pool > 1 else part for part in parts)
    return train, test


def _net(scale: Scale, data: Data) -> nn.Module:
    """The architecture; its weights are never used: every run starts from new ones."""
    channels, height, width = data.shape
    shape, classes = (channels, height, width), len(data.classes)
    with seeded(0, "architecture"):
        if scale["net"] is None:  # ResNet-18 for small images
            return ResNet(shape, classes, scale["hidden"], (2, 2, 2, 2)).to(pick_device())
        return SmallCNN(shape, classes, scale["net"], scale["hidden"])


def _mlp(data: Data, hidden: int) -> nn.Module:
    """Another architecture."""
    with seeded(0, "architecture"):
        return MLP(data.shape, len(data.classes), (hidden,))


def _trainer(scale: Scale, steps: int, lr: float, schedule: Literal["constant", "cosine"]) -> Trainer:
    plan: dict[str, Any] = SGD if scale["net"] is None else ADAM
    return Supervised(steps=steps, lr=lr, schedule=schedule, **plan)


def _crop_and_flip(x: Tensor, draws: Draws) -> Tensor:
    """Zero-padded by 4, cropped at random, mirrored with probability one half."""
    n, _, h, w = x.shape
    corner, mirrored = draws.integers(9, 2), draws.integers(2)
    rows = corner[:, :1] + torch.arange(h, device=x.device)
    columns = corner[:, 1:] + torch.arange(w, device=x.device)
    columns = torch.where(mirrored.view(n, 1) > 0, columns.flip(1), columns)
    padded = F.pad(x, (4, 4, 4, 4))
    return padded[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]].movedim(3, 1)


def _accuracy(scale: Scale, given: Mapping[str, Any], data: Data, seed: int) -> float:
    """Test accuracy of a network trained from one start for the scale's steps, whatever the size of ``data``."""
    augment = {"augment": _crop_and_flip} if scale["net"] is None else {}
    start = fresh(given["net"], seed=derive(seed, "retrain"))
    model = _trainer(scale, scale["steps"], scale["lr"], "cosine").fit(start, data, seed=seed, **augment)
    return float((predict(model, given["test"].x).argmax(1) == given["test"].y).float().mean())


def _runs(scale: Scale, net: nn.Module, data: Data, seed: int) -> dict[str, Tensor]:
    """Scores (K, n) of each short run, after its steps and before them."""
    trainer = _trainer(scale, scale["scoring"], scale["scoring_lr"], "constant")
    diet = DataDiet(n_models=scale["models"], steps=scale["scoring"], trainer=trainer)
    return {
        "trained": diet.fit(net, data, seed=seed).runs_,
        "untrained": replace(diet, steps=0).fit(net, data, seed=seed).runs_,
    }


def _scores(runs: Mapping[str, Tensor], seed: int, sham: str | None) -> Tensor:
    """The scores (n,) that the subsets are chosen by."""
    if sham == "untrained-scores":
        return runs["untrained"].mean(0)
    scores = runs["trained"].mean(0)
    if sham == "misaligned-scores":
        return scores[torch.randperm(len(scores), generator=torch_rng(seed, "loader"))]
    return scores


def _by_hand(seed: int, sham: str | None) -> float:
    """Largest difference of a diet of two runs on 60 digits from the distances of their softmax, one by one."""
    data = _images("digits", 1)[0].limit(60, seed=seed)
    model = _mlp(data, 16)
    trainer = Supervised(batch_size=20, lr=1e-2, schedule="constant")
    diet = DataDiet(n_models=2, steps=15, trainer=trainer)
    runs = {"trained": diet.fit(model, data, seed=seed).runs_}
    runs["untrained"] = replace(diet, steps=0).fit(model, data, seed=seed).runs_
    expected = np.zeros(len(data))
    for k in range(2):
        s = derive(seed, "data diet", k)
        trained = replace(trainer, steps=15).fit(fresh(model, seed=s), data, seed=s)
        for i in range(len(data)):
            z = trained(data.x[i : i + 1])[0].detach().double().numpy()
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            p[int(data.y[i])] -= 1
            expected[i] += np.sqrt((p**2).sum()) / 2
    return float(np.abs(_scores(runs, seed, sham).numpy() - expected).max())


def _identities(seed: int) -> dict[str, float]:
    """GraNd of linear models against its closed form, and between methods; forgetting by hand; a barrier to itself."""
    with seeded(seed, "identities"):
        linear, conv = nn.Linear(12, 5).double(), SmallCNN((1, 8, 8), 5, (3, 4), 6).double()
        x, images = 3 * torch.randn(40, 12, dtype=torch.float64), torch.rand(20, 1, 8, 8, dtype=torch.float64)
    y = torch.arange(40) % 5
    with torch.no_grad():
        closed = (linear(x).softmax(1) - F.one_hot(y, 5)).norm(dim=1) * (x.square().sum(1) + 1).sqrt()
    slow, *fast = (grand_scores([conv], images, y[:20], method=m) for m in ("loop", "vmap", "ghost"))
    seen = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1]]).bool()
    events = forget_scores(seen).tolist() == [1, 2, 0, float("inf"), 1]
    scores = el2n_scores([linear], x, y)
    return {
        "linear": float((grand_scores([linear], x, y) - closed).abs().max()),
        "methods": max(float((slow - other).abs().max()) for other in fast),
        "others": max(
            0.0 if events else 1.0,
            abs(linear_mode_barrier(conv, conv, images, y[:20]).value),
            max(float(scores.max()) - 2**0.5, -float(scores.min()), 0.0),
        ),
    }


def _wrong_labels(data: Data, seed: int) -> tuple[Data, Tensor]:
    """The share NOISE of the labels is another one, uniformly; and which."""
    g, classes = torch_rng(seed, "noise"), len(data.classes)
    wrong = torch.rand(len(data), generator=g) < NOISE
    other = (data.y + torch.randint(1, classes, data.y.shape, generator=g)) % classes
    return data.with_y(torch.where(wrong, other, data.y)), wrong


def _stability(scale: Scale, net: nn.Module, train: Data, runs: Tensor, seed: int) -> dict[str, Any]:
    """Rank correlations of the scores between halves of the runs and with those of another architecture."""
    half = len(runs) // 2
    mlp = _runs(scale, _mlp(train, 64).to(device_of(net)), train, seed)
    return {
        "arm": "stability",
        "halves": spearmanr(runs[:half].mean(0), runs[half:].mean(0))[0],
        "architectures": spearmanr(runs.mean(0), mlp["trained"].mean(0))[0],
    }


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Data, the scores of the short runs on right and on wrong labels, and the arms that no sham changes."""
    whole, held = _images(scale["data"], scale["pool"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    noisy, wrong = _wrong_labels(train, seed)
    net = _net(scale, train)
    given: dict[str, Any] = {"net": net, "train": train, "test": test, "noisy": noisy, "wrong": wrong}
    given |= {"clean_runs": _runs(scale, net, train, seed), "noisy_runs": _runs(scale, net, noisy, seed)}
    clean, dirty = (_scores(given[name], seed, None) for name in ("clean_runs", "noisy_runs"))
    order = torch.rand(len(train), generator=torch_rng(seed, "random order"))
    subsets = {f"random {keep}": train[offset_subset(order, keep)] for keep in (0.5, 0.25, 0.1)}
    subsets |= {"full": train, "hardest 0.1": train[offset_subset(clean, 0.1)]}
    subsets |= {f"noisy, offset {o}": noisy[offset_subset(dirty, NOISY_KEEP, o)] for o in (0.0, NOISE)}
    given["rows"] = [{"arm": arm, "accuracy": _accuracy(scale, given, d, seed)} for arm, d in subsets.items()]
    given["rows"] += [_stability(scale, net, train, given["clean_runs"]["trained"], seed)]
    given["rows"] += [{"arm": "identities", **_identities(seed)}]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Test accuracies after training on the hardest and easiest, and how well the scores find wrong labels."""
    train, rows = given["train"], list(given["rows"])
    scores = _scores(given["clean_runs"], seed, sham)
    chosen = {"hardest 0.5": (scores, 0.5), "hardest 0.25": (scores, 0.25), "easiest 0.5": (-scores, 0.5)}
    for arm, (by, keep) in chosen.items():
        rows.append({"arm": arm, "accuracy": _accuracy(scale, given, train[offset_subset(by, keep)], seed)})
    pairs = torch.stack([_scores(given["noisy_runs"], seed, sham), given["wrong"].double()], 1)
    rows.append({"arm": "wrong labels", "auc": point("auroc", pairs.numpy())})
    return Table.of([*rows, {"arm": "by hand", "gap": _by_hand(seed, sham)}])


def claims(table: Table) -> list[Claim]:
    """The hardest quarter, the easiest half and the exact checks decide; the other differences support."""
    both = ("misaligned-scores", "untrained-scores")
    return [
        Claim(
            "trained on the hardest quarter, test accuracy exceeds that on a random quarter by 0.01 or more",
            table.gain("hardest 0.25", "random 0.25", "accuracy"),
            at_least=0.01,
            refuted_by=both,
        ),
        Claim(
            "trained on the easiest half, test accuracy is 0.05 or more below that on a random half",
            table.gain("easiest 0.5", "random 0.5", "accuracy"),
            at_most=-0.05,
            refuted_by=("misaligned-scores",),
        ),
        Claim(
            "the scores of a diet are the mean distances of its trained networks' softmax to the label, sample by "
            "sample: largest difference",
            table.per_seed("gap", np.max),
            at_most=1e-5,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "GraNd of a linear softmax model is EL2N times sqrt(|x|^2 + 1): largest difference",
            table.per_seed("linear", np.max),
            at_most=1e-6,
            rule="exact",
        ),
        Claim(
            "GraNd of a convolutional network by vmap and by ghost norms is that of one backward pass a sample: "
            "largest difference",
            table.per_seed("methods", np.max),
            at_most=1e-8,
            rule="exact",
        ),
        *_support(table, both),
    ]


def _support(table: Table, both: tuple[str, str]) -> list[Claim]:
    """What else the paper says."""
    return [
        Claim(
            "forgetting counts by hand, EL2N in [0, sqrt 2], no barrier between equal networks: largest difference",
            table.per_seed("others", np.max),
            at_most=1e-9,
            rule="exact",
            key=False,
        ),
        Claim(
            "trained on the hardest half, test accuracy is at most 0.002 below that on all samples",
            table.gain("hardest 0.5", "full", "accuracy"),
            at_least=-0.002,
            key=False,
        ),
        Claim(
            "trained on the hardest half, test accuracy exceeds that on a random half by 0.004 or more",
            table.gain("hardest 0.5", "random 0.5", "accuracy"),
            at_least=0.004,
            key=False,
        ),
        Claim(
            "area under the ROC curve of EL2N for the tenth of labels that are wrong is at least 0.97",
            table.per_seed("auc", arm="wrong labels"),
            at_least=0.97,
            key=False,
            refuted_by=both,
        ),
        Claim(
            "with wrong labels, keeping 0.4 after an offset of 0.1 beats keeping the hardest 0.4 by 0.01 or more",
            table.gain(f"noisy, offset {NOISE}", "noisy, offset 0.0", "accuracy"),
            at_least=0.01,
            key=False,
        ),
        Claim(
            "rank correlation of the scores between halves of the runs is at least 0.8",
            table.per_seed("halves", arm="stability"),
            at_least=0.8,
            key=False,
        ),
        Claim(
            "rank correlation of the scores between a convolutional network and an MLP is at least 0.7",
            table.per_seed("architectures", arm="stability"),
            at_least=0.7,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Test accuracy over the share that is kept; with wrong labels, over the offset."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(2, 1))
    for name, shares in {"hardest": (0.1, 0.25, 0.5), "random": (0.1, 0.25, 0.5), "easiest": (0.5,)}.items():
        runs = np.stack([table.per_seed("accuracy", arm=f"{name} {share}") for share in shares])
        (line,) = left.plot(shares, runs.mean(1), "-o", label=name)
        left.plot(shares, runs, "o", ms=3, color=line.get_color(), alpha=0.4)
    left.axhline(table.per_seed("accuracy", arm="full").mean(), color="0.5", ls="--", label="all samples")
    left.set(xlabel="share kept", ylabel="test accuracy", title="Equal steps on a subset")
    left.legend(frameon=False)
    noisy = np.stack([table.per_seed("accuracy", arm=f"noisy, offset {o}") for o in (0.0, NOISE)])
    right.plot((0, NOISE), noisy, "o", ms=3, color="0.6")
    right.plot((0, NOISE), noisy.mean(1), "-o")
    right.set(xlabel="offset", title="0.4 kept, 0.1 wrong")
    return drawing
