"""AAER: penalising samples whose attack step lowered their loss keeps single-step training from its fake robustness.

Where the loss is wavy, one step of FGSM overshoots: on a cosine of frequency k the share of abnormal samples is
k eps / (2 pi), and what they lose and how far logits move are integrals. Exact: these, and the loss against its formula
written out. On digits FGSM training at a large radius collapses (accuracy under FGSM, none under PGD, a third of the
samples abnormal); AAER removes the abnormal samples and the fake accuracy. No accuracy under PGD is regained at this
size. A hinge with its roles exchanged also holds logits back: in pilots it left 0.06 to 0.4 of the samples abnormal,
which a quarter of the baseline's share does not separate in every run, so that the written-out loss alone refutes it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.special import log_softmax
from torch import Tensor, nn

from assay.attacks import FGSM, PGD, Linf
from assay.data import Data, load_data
from assay.defenses import AAER, SingleStepAT
from assay.dynamics import AAEMonitor
from assay.losses import AAERLoss
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng

HEIGHT, RADIUS = 2.0, 0.1  # of the wave, of the step on it
ANGLES = (0.5, 1.0, 1.4, 3.0)  # k eps; up to pi / 2 no prediction changes from wrong to right
FACTORS: dict[str, Any] = {"lam_number": 1.0, "lam_ce": 4.0, "lam_logit": 1.5}
FGSM_AT, AAER_AT = "fgsm training", "aaer"

PAPER = Paper(
    slug="aaer",
    title="Eliminating Catastrophic Overfitting Via Abnormal Adversarial Examples Regularization",
    authors="Runqi Lin, Chaojian Yu, Tongliang Liu",
    year=2023,
    arxiv="2404.08154",
    room="losses",
    also=("defenses", "dynamics"),
    kind="method",
    implements=(
        "losses.AAERLoss",
        "defenses.AAER",
        "defenses.SingleStepAT",
        "dynamics.AAEMonitor",
        "dynamics.overfits_catastrophically",
    ),
    claim="Penalising samples whose attack step lowered their loss removes them and the fake accuracy under FGSM.",
    headline="CIFAR-10, PreActResNet-18, up to 32/255: FGSM and RS training fall to 0% under PGD-50, with AAER they "
    "keep their robustness at the same cost.",
    peers=("locuslab/fast_adversarial", "pdejorge/N-FGSM", "tml-epfl/understanding-fast-adv-training"),
    baselines=(FGSM_AT,),
    shams={
        "prediction-test": "abnormal are samples whose prediction turns from wrong to right, whatever their losses",
        "swapped-roles": "the hinge has the roles exchanged, V_rest - V_A with V_A constant, and C has no gradient",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 300, "test": 200, "hidden": (64,), "steps": 60, "eps": 0.365,
                           "restarts": 1, "pgd": 5, "points": 20_000}),
        Scale("claim", 5, {"data": "digits", "train": 1000, "test": 797, "hidden": (256, 256), "steps": 1000,
                           "eps": 0.365, "restarts": 3, "pgd": 30, "points": 50_000}),
    ),
)  # fmt: skip


class _PredictionTest(AAERLoss):
    def abnormal(self, lost: Tensor, before: Tensor, after: Tensor, target: Tensor) -> Tensor:
        return (before.argmax(1) != target) & (after.argmax(1) == target)


class _SwappedRoles(AAERLoss):
    def terms(self, before: Tensor, after: Tensor, target: Tensor) -> dict[str, Tensor]:
        found = super().terms(before, after, target)
        normal = F.cross_entropy(before, target, reduction="none") <= F.cross_entropy(after, target, reduction="none")
        moved = ((after - before).square().sum(1) * normal).sum() / normal.sum().clamp_min(1)
        constant = {name: found[name].detach() for name in ("ce_gap", "logit_shift_abnormal")}
        return {**found, **constant, "logit_shift_normal": moved}

    def excess(self, terms: dict[str, Tensor]) -> Tensor:
        return (terms["logit_shift_normal"] - terms["logit_shift_abnormal"]).clamp_min(0)


RULES: dict[str | None, type[AAERLoss]] = {
    None: AAERLoss,
    "prediction-test": _PredictionTest,
    "swapped-roles": _SwappedRoles,
}


class _PredictionTestAAER(AAER):
    def criterion(self) -> AAERLoss:
        return _PredictionTest(self.lam_number, self.lam_ce, self.lam_logit, self.ce_gradient)


class _SwappedRolesAAER(AAER):
    def criterion(self) -> AAERLoss:
        return _SwappedRoles(self.lam_number, self.lam_ce, self.lam_logit, self.ce_gradient)


TRAINERS: dict[str | None, type[AAER]] = {
    None: AAER,
    "prediction-test": _PredictionTestAAER,
    "swapped-roles": _SwappedRolesAAER,
}


class Wave(nn.Module):
    """Logits (HEIGHT cos(k x), 0) of points (n, 1)."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        margin = HEIGHT * (self.k * x[:, 0]).cos()
        return torch.stack((margin, torch.zeros_like(margin)), 1)


def stepped(model: nn.Module, x: Tensor, y: Tensor, eps: float, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Logits before and after the single step that training from ``x`` would take."""
    start = x.clone().requires_grad_()
    before = model(start)
    (slope,) = torch.autograd.grad(F.cross_entropy(before, y), start)
    x_adv = SingleStepAT(init="zero", eps=eps).climb(x, x.clone(), slope, 1.0, bounds)
    return before.detach(), model(x_adv).detach()


def integrals(angle: float) -> dict[str, float]:
    """Share, C, V_A and V_rest on the wave, phases uniform in (-pi, pi): abnormal beyond pi - angle / 2."""

    def loss(theta: float) -> float:
        return float(np.logaddexp(0, -HEIGHT * np.cos(theta)))

    def moved(theta: float) -> float:
        return float((HEIGHT * (np.cos(theta + angle) - np.cos(theta))) ** 2)

    edge = np.pi - angle / 2
    return {
        "share": angle / (2 * np.pi),
        "ce_gap": quad(lambda t: loss(t) - loss(t + angle), edge, np.pi)[0] / (angle / 2),
        "logit_shift_abnormal": quad(moved, edge, np.pi)[0] / (angle / 2),
        "logit_shift_normal": quad(moved, 0, edge)[0] / edge,
    }


def wave_errors(rule: AAERLoss, angle: float, points: int, seed: int) -> dict[str, float]:
    """Relative error of the share and largest error of the means, on evenly spread points with a random offset."""
    k = angle / RADIUS
    offset = float(torch.rand((), generator=torch_rng(seed, "wave", angle)))
    x = ((torch.arange(points, dtype=torch.float64) + offset) / points * 2 * np.pi / k)[:, None]
    y = torch.zeros(points, dtype=torch.int64)
    terms = rule.terms(*stepped(Wave(k), x, y, RADIUS, (-np.inf, np.inf)), y)
    expected, share = integrals(angle), float(terms["n_abnormal"]) / points
    apart = [abs(float(terms[name]) - value) for name, value in expected.items() if name != "share"]
    return {"found": share, "share": abs(share / expected["share"] - 1), "means": max(apart)}


def written_out(before: np.ndarray, after: np.ndarray, y: np.ndarray) -> float:
    """The loss, sample by sample: mean l1 + lam1 n/N (lam2 C + lam3 max(V_A - V_rest, 0))."""
    l0, l1 = (-log_softmax(z, 1)[np.arange(len(y)), y] for z in (before, after))
    abnormal = [i for i in range(len(y)) if l0[i] > l1[i]]
    normal = [i for i in range(len(y)) if not l0[i] > l1[i]]
    if not abnormal or not normal:
        return float(l1.mean())
    c = sum(l0[i] - l1[i] for i in abnormal) / len(abnormal)
    va, vb = (sum(((after[i] - before[i]) ** 2).sum() for i in part) / len(part) for part in (abnormal, normal))
    extra = FACTORS["lam_ce"] * c + FACTORS["lam_logit"] * max(va - vb, 0.0)
    return float(l1.mean() + FACTORS["lam_number"] * len(abnormal) / len(y) * extra)


def exact(rule: type[AAERLoss], seed: int) -> dict[str, float]:
    """Errors of the loss on random batches, and of its being cross-entropy for a linear model (no abnormal sample)."""
    g = torch_rng(seed, "exact")
    gaps = []
    for k in range(20):
        before, after = (2 * torch.randn(4 + k, 5, generator=g, dtype=torch.float64) for _ in range(2))
        y = torch.randint(5, (4 + k,), generator=g)
        expected = written_out(before.numpy(), after.numpy(), y.numpy())
        gaps.append(abs(float(rule(**FACTORS)(after, y, before)) - expected))
    with seeded(seed, "linear"):
        model = nn.Linear(30, 6).double()
    x, y = torch.rand(200, 30, generator=g, dtype=torch.float64), torch.randint(6, (200,), generator=g)
    linear = []
    for bounds in ((0.0, 1.0), (-np.inf, np.inf)):
        before, after = stepped(model, x, y, 0.3, bounds)
        count = float(AAERLoss().terms(before, after, y)["n_abnormal"])
        linear += [count, abs(float(AAERLoss(**FACTORS)(after, y, before) - F.cross_entropy(after, y)))]
    return {"loss": max(gaps), "linear": max(linear)}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _rows(scale: Scale, seed: int, given: dict[str, Any], arm: str, trainer: SingleStepAT) -> list[dict[str, Any]]:
    """Accuracies, the share of abnormal samples by epoch, and its mean over the later half of them."""
    test, monitor = given["test"], AAEMonitor()
    model = trainer.fit(given["start"], given["train"], seed=seed, hooks=[monitor])
    ball, accuracy = Linf(scale["eps"]), {"clean": predict(model, test.x)}
    attacks = {"fgsm": FGSM(ball=ball), "pgd": PGD(ball=ball, steps=scale["pgd"], restarts=scale["restarts"])}
    for name, attack in attacks.items():
        accuracy[name] = predict(model, attack(model, test.x, test.y, seed=derive(seed, name)))
    right = {name: float((z.argmax(1) == test.y).float().mean()) for name, z in accuracy.items()}
    shares = [epoch["share"] for epoch in monitor.history]
    row = {"arm": arm, **right, "gap": right["fgsm"] - right["pgd"], "share": np.mean(shares[len(shares) // 2 :])}
    return [row, *({"arm": f"{arm}, epochs", "epoch": k, "abnormal": s} for k, s in enumerate(shares, 1))]


def _plan(scale: Scale) -> dict[str, Any]:
    plan = {"steps": scale["steps"], "batch_size": 64, "optimizer": "sgd", "lr": 0.05, "schedule": "constant"}
    return {**plan, "eps": scale["eps"], "init": "zero"}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Data, start, and the rows of FGSM training."""
    whole, held = _images(scale["data"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    with seeded(seed, "init"):
        start = MLP(train.shape, len(train.classes), scale["hidden"])
    given: dict[str, Any] = {"train": train, "test": test, "start": start}
    given["rows"] = _rows(scale, seed, given, FGSM_AT, SingleStepAT(**_plan(scale)))
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The wave, the exact checks, and training with AAER beside training without."""
    rule = RULES[sham]
    rows = [{"arm": "wave", "angle": a, **wave_errors(rule(**FACTORS), a, scale["points"], seed)} for a in ANGLES]
    rows.append({"arm": "exact", **exact(rule, seed)})
    trainer = TRAINERS[sham](**FACTORS, **_plan(scale))
    return Table.of([*rows, *given["rows"], *_rows(scale, seed, given, AAER_AT, trainer)])


def claims(table: Table) -> list[Claim]:
    """The wave, the written-out loss and the share of abnormal samples decide; accuracies support."""
    base, found = ({c: table.per_seed(c, arm=arm) for c in ("share", "gap")} for arm in (FGSM_AT, AAER_AT))
    wave: dict[str, Any] = {"arm": "wave"}

    def identity(text: str, observed: np.ndarray, at_most: float, refuted_by: tuple[str, ...] = ()) -> Claim:
        return Claim(text, observed, at_most=at_most, rule="exact", key=bool(refuted_by), refuted_by=refuted_by)

    def most(text: str, observed: np.ndarray, **bound: float) -> Claim:
        return Claim(text, observed, rule="k-of-n", k=4, **bound)  # type: ignore[arg-type]

    return [
        identity(
            "on a cosine the share of abnormal samples is k eps / (2 pi): largest relative error",
            table.per_seed("share", np.max, **wave),
            0.01,
            ("prediction-test",),
        ),
        identity(
            "there C, V_A and V_rest are their integrals: largest difference",
            table.per_seed("means", np.max, **wave),
            1e-3,
            ("prediction-test",),
        ),
        identity(
            "the loss of random batches against its formula written out: largest difference",
            table.per_seed("loss", np.max),
            1e-10,
            ("prediction-test", "swapped-roles"),
        ),
        identity(
            "a linear model has no abnormal sample, and AAER is cross-entropy: largest difference",
            table.per_seed("linear", np.max),
            1e-12,
        ),
        most(
            "FGSM training collapses: share of abnormal samples, later half of the epochs", base["share"], at_least=0.2
        ),
        # The collapse as dynamics.overfits_catastrophically has it.
        most("FGSM training collapses: accuracy under FGSM less that under PGD", base["gap"], at_least=0.25),
        most(
            "share of abnormal samples with AAER less a quarter of that without, later half of the epochs",
            found["share"] - base["share"] / 4,
            at_most=0.0,
        ),
        Claim(
            "accuracy under FGSM less that under PGD with AAER, less half of that without",
            found["gap"] - base["gap"] / 2,
            at_most=0.0,
            key=False,
        ),
        Claim(
            "accuracy under PGD with AAER over that without",
            table.gain(AAER_AT, FGSM_AT, "pgd"),
            at_least=-0.005,
            key=False,
        ),
        Claim("clean accuracy with AAER", table.per_seed("clean", arm=AAER_AT), at_least=0.5, key=False),
    ]


def figure(table: Table) -> Figure:
    """The share on the wave over k eps, and over the epochs of training."""
    drawing = Figure(figsize=(8.4, 3.3), layout="constrained")
    left, right = drawing.subplots(1, 2)
    left.plot((0, max(ANGLES)), (0, max(ANGLES) / (2 * np.pi)), color="0.6", label="k eps / (2 pi)")
    wave = table.where(arm="wave")
    left.plot(wave.values("angle"), wave.values("found"), "o", ms=5, label="found")
    left.set(xlabel="k eps", ylabel="share of abnormal samples", title="On a cosine")
    left.legend(frameon=False)
    for arm, name in ((FGSM_AT, "FGSM training"), (AAER_AT, "AAER")):
        part = table.where(arm=f"{arm}, epochs")
        epochs = sorted(set(part.values("epoch")))
        runs = np.stack([part.per_seed("abnormal", epoch=int(e)) for e in epochs])
        (line,) = right.plot(epochs, runs.mean(1), label=name)
        right.plot(epochs, runs, lw=0.6, alpha=0.4, color=line.get_color())
    right.set(xlabel="epoch", title="Training on digits")
    right.legend(frameon=False)
    return drawing
