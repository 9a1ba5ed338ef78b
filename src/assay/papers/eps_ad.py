"""EPS-AD: the score of an input, averaged over noise levels, tells attacked inputs from natural ones.

Exact, on data whose score is known: the average has the mean and the noise that theory gives it (a fresh noise at each
level is what makes the noise small), it is linear in the input, and the discrepancy by which it is compared is what the
definition says. Learned, on digits, as support: attacks are found, but so is any noise of the same size, by this
detector and by the length of a single score; whether more than noise is found takes photographs and a large model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import FGSM, PGD, CarliniWagner, Linf
from assay.data import Data, load_data
from assay.detect import (
    EPSAD,
    DeepKernel,
    DeepKernelMMD,
    DetectorAwarePGD,
    ScoreNorm,
    expected_perturbation_score,
    mmd2,
    mmd_variance,
)
from assay.detect.base import FittedDetector
from assay.detect.deep_kernel import FeatureNet
from assay.generate import DenoisingScoreMatching, NoisePrediction, TinyScoreUNet
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.content import content_draws
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, numpy_rng, seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Supervised

LEVELS = (1, 2, 5, 10, 20)
VARIANCE = 0.05  # of the Gaussian data, in units of [-1, 1]
ARMS = ("eps-ad", "eps-ad, gaussian", "eps norm", "score norm")
ATTACKS = ("fgsm", "pgd", "cw", "random signs", "adaptive pgd")

PAPER = Paper(
    slug="eps-ad",
    title="Detecting Adversarial Data by Probing Multiple Perturbations Using Expected Perturbation Score",
    authors="Shuhai Zhang, Feng Liu, Jiahao Yang, Yifan Yang, Changsheng Li, Bo Han, Mingkui Tan",
    year=2023,
    arxiv="2305.16035",
    room="detect",
    also=("generate",),
    kind="method",
    implements=(
        "detect.EPSAD",
        "detect.ScoreNorm",
        "detect.DeepKernelMMD",
        "detect.DetectorAwarePGD",
        "detect.expected_perturbation_score",
        "detect.mmd2",
        "detect.mmd_variance",
        "generate.DenoisingScoreMatching",
        "generate.TinyScoreUNet",
        "generate.VPSDE",
        "generate.wrap_diffusers",
    ),
    claim="Scores averaged over noise levels, compared by a deep-kernel MMD, tell an attacked input from natural ones.",
    headline="CIFAR-10, eps 4/255: AUROC 0.99 to 1.0 for attacks that were not trained on.",
    peers=("diffusers.DDPMScheduler",),
    baselines=("eps norm", "score norm"),
    shams={
        "one-noise": "a single z is shared by all T levels of a sample, in place of a fresh one for each",
        "missing-scale": "the network's noise is taken for the score: -eps(x_t, t) without the factor 1 / sigma(t)",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"draws": 2000, "d": 6, "data": "digits", "train": 200, "part": 24, "width": 4, "epochs": 2, "kernel": 3},
        ),
        Scale(
            "claim",
            5,
            {
                "draws": 4000,
                "d": 16,
                "data": "digits",
                "train": 1000,
                "part": 90,
                "width": 8,
                "epochs": 12,
                "kernel": 60,
            },
        ),
        Scale(
            "gpu",
            5,
            {
                "draws": 4000,
                "d": 16,
                "data": "cifar10",
                "train": 50_000,
                "part": 500,
                "width": 64,
                "epochs": 60,
                "kernel": 200,
            },
        ),
    ),
)


class _GaussianNoise(nn.Module):
    """What the best network says of N(mean, v I): b (x_t - a mean) / (a^2 v + b^2)."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a, b = (torch.from_numpy(w)[:, None] for w in _mix(t.double().numpy()))
        return b * (x - a * self.mean) / (a**2 * VARIANCE + b**2)


class _MissingScale(NoisePrediction):
    def factor(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


def _mix(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a(t) and b(t) written out: exp(-int beta / 2) and what is left of variance 1."""
    integral = 0.1 * t + (20 - 0.1) * t**2 / 2
    return np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))


def _weights(T: int) -> tuple[float, float]:
    """By theory: the factor of (x - mean) in EPS, and the variance of its noise with a fresh z at each level."""
    a, b = _mix(np.arange(1, T + 1) / 1000)
    c = b / (a**2 * VARIANCE + b**2)
    return float(-np.mean(a / (a**2 * VARIANCE + b**2))), float(np.sum(c**2) / T**2)


def exact_score(draws: int, d: int, seed: int, *, sham: str | None = None) -> list[dict[str, Any]]:
    """For each T: errors of the mean in standard errors, variance over theory's, and the departure from linearity."""
    rng = numpy_rng(seed, "gaussian")
    mean = torch.from_numpy(rng.uniform(-0.5, 0.5, d))
    x, other = (torch.from_numpy(rng.uniform(0, 1, (draws, d))) for _ in range(2))
    score = (_MissingScale if sham == "missing-scale" else NoisePrediction)(_GaussianNoise(mean))
    rows = []
    for T in LEVELS:
        noise = None
        if sham == "one-noise":
            noise = content_draws(seed, "eps", x).normal(1, 1, d).expand(-1, -1, T, -1)
        eps = expected_perturbation_score(score, x, T, seed=seed, noise=noise, batch_size=20_000).numpy()
        factor, variance = _weights(T)
        offset = 2 * x.numpy() - 1 - mean.numpy()
        rest = eps - factor * offset
        spread = rest.std()
        slope = (rest * offset).sum() / (spread * np.sqrt((offset**2).sum()))
        centre = np.abs(rest.mean(0)).max() / spread * np.sqrt(draws)
        few = slice(0, 50)
        same = torch.from_numpy(rng.standard_normal((50, 1, T, d)))
        pair = [expected_perturbation_score(score, z[few], T, noise=same).numpy() for z in (x, other)]
        bent = np.abs(pair[0] - pair[1] - 2 * factor * (x - other)[few].numpy()).max()
        rows.append(
            {"arm": "exact", "T": T, "mean": max(abs(slope), centre), "variance": rest.var() / variance, "bent": bent}
        )
    return rows


def exact_mmd(seed: int, n: int = 9, d: int = 5) -> dict[str, Any]:
    """Largest difference of the estimators from double loops; the least eigenvalue of a deep kernel's matrix."""
    rng = numpy_rng(seed, "mmd")
    x, y = rng.standard_normal((n, d)), 0.5 + rng.standard_normal((n, d))
    pairs = ((x, x), (y, y), (x, y))
    xx, yy, xy = (np.exp(-np.array([[((a - b) ** 2).sum() for b in q] for a in p]) / 3) for p, q in pairs)
    u = v = 0.0
    h = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            h[i, j] = xx[i, j] + yy[i, j] - xy[i, j] - xy[j, i]
            v += h[i, j] / n**2
            u += h[i, j] / (n * (n - 1)) if i != j else 0.0
    variance = 4 * (sum((sum(h[i]) / n) ** 2 for i in range(n)) / n - v**2)
    a, b, c = (torch.from_numpy(k) for k in (xx, yy, xy))
    found = (mmd2(a, b, c), mmd2(a, b, c, "v"), mmd_variance(a, b, c))
    with seeded(seed, "kernel"):
        deep = DeepKernel(FeatureNet((1, 8, 8)), (1, 8, 8), spread=1.0).eval()
    samples = 3 * torch.randn(40, 1, 8, 8, generator=torch_rng(seed, "samples"))
    with torch.no_grad():
        least = torch.linalg.eigvalsh(deep(samples, samples)).min()
    return {
        "arm": "mmd",
        "estimators": max(abs(float(f) - e) for f, e in zip(found, (u, v, variance), strict=True)),
        "eigenvalue": float(least),
    }


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _stored(x: Tensor) -> Tensor:
    """Through 8 bits: what a file would hold."""
    return (x * 255).round() / 255


def _attacked(model: nn.Module, data: Data, seed: int) -> dict[str, Tensor]:
    """By attack the images that it changes the decision of; random signs on all that are right."""
    right = data[predict(model, data.x).argmax(1) == data.y]
    ball = Linf(0.1)
    attacks = {
        "fgsm": FGSM(ball=ball),
        "pgd": PGD(ball=ball, steps=20, early_stop=False),
        "cw": CarliniWagner(steps=120, searches=3, initial=1.0, learning_rate=0.1),
    }
    found = {name: _stored(attack(model, right.x, right.y, seed=seed)) for name, attack in attacks.items()}
    fooled = {name: predict(model, x).argmax(1) != right.y for name, x in found.items()}
    signs = ball.eps * Draws(seed, "signs", right.index).signs(*right.shape)
    return {
        "random signs": _stored((right.x + signs).clamp(0, 1)),
        **{name: found[name][fooled[name]] for name in attacks},
    }


def _auroc(normal: Tensor, abnormal: Tensor) -> float:
    label = np.repeat([0.0, 1.0], [len(normal), len(abnormal)])
    return point("auroc", np.column_stack((np.r_[normal.numpy(), abnormal.numpy()], label)))


def _measured(arm: str, fitted: FittedDetector, natural: Tensor, attacked: dict[str, Tensor]) -> list[dict[str, Any]]:
    inside = fitted.score(natural)
    scores = {name: fitted.score(x) for name, x in attacked.items()}
    rows = [{"arm": arm, "attack": name, "auroc": _auroc(inside, s)} for name, s in scores.items()]
    return [*rows, {"arm": arm, "beside_signs": _auroc(scores["random signs"], scores["pgd"])}]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """What no sham changes: the kernel's exact part, and the detectors on images (the shams are judged on theory)."""
    train, test = _images(scale["data"])
    part = scale["part"]
    train, test = train.limit(scale["train"], seed=seed), test.limit(3 * part, seed=seed)
    channels, height, width = train.shape
    shape = (channels, height, width)
    with seeded(seed, "init"):
        start, net = SmallCNN(shape, len(train.classes), (16, 32)), TinyScoreUNet(shape, scale["width"])
    model = Supervised(epochs=max(scale["epochs"] // 2, 6)).fit(start, train, seed=derive(seed, "victim"))
    score = DenoisingScoreMatching(epochs=scale["epochs"]).fit(net, train, seed=derive(seed, "score"))
    natural, attacked = test.x[:part], _attacked(model, test[part:], seed)
    shared: dict[str, Any] = {"score_model": score, "batch_size": 1024}
    kernel = DeepKernelMMD(epochs=scale["kernel"], batch_size=part)
    detectors = {
        "eps-ad": EPSAD(kernel="deep", training=kernel, ref_size=part, eps=0.05, **shared),
        "eps-ad, gaussian": EPSAD(ref_size=part, **shared),
        "eps norm": ScoreNorm(T=20, perturb=True, **shared),
        "score norm": ScoreNorm(**shared),
    }
    few, rows = train.limit(2 * part, seed=derive(seed, "reference")), [exact_mmd(seed)]
    first = {name: x[:part] for name, x in attacked.items()}
    for arm, detector in detectors.items():
        fitted = detector.fit(model, few, few[: part // 2])
        if arm == "eps-ad, gaussian":
            some = test[part : part + part // 3]
            attack = DetectorAwarePGD(ball=Linf(0.1), steps=10, detector=fitted, weight=10.0)
            hard = attack(model, some.x, some.y, seed=seed)
            rows += _measured(arm, fitted, natural, {**first, "adaptive pgd": _stored(hard)})
        else:
            rows += _measured(arm, fitted, natural, first)
    return {"rows": rows}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact part under the sham, and what was measured without one."""
    return Table.of([*exact_score(scale["draws"], scale["d"], seed, sham=sham), *given["rows"]])


def _exact_claims(table: Table) -> list[Claim]:
    def exact(text: str, column: str, limit: float, refuted_by: tuple[str, ...], key: bool = True) -> Claim:
        observed = table.per_seed(column, lambda v: np.abs(v).max())
        return Claim(text, observed, at_most=limit, rule="exact", key=key, refuted_by=refuted_by)

    return [
        exact(
            "EPS of Gaussian data, 1 to 20 levels: its mean departs from -mean_i a_i (x - m) / (a_i^2 v + b_i^2) by at "
            "most 5.5 standard errors",
            "mean",
            5.5,
            ("missing-scale",),
        ),
        Claim(
            "its variance over (1/T^2) sum_i b_i^2 / (a_i^2 v + b_i^2)^2",
            np.concatenate([table.per_seed("variance", f) for f in (np.min, np.max)]),
            at_least=0.9,
            at_most=1.1,
            rule="exact",
            refuted_by=("one-noise", "missing-scale"),
        ),
        exact("under the same noise EPS(x) - EPS(x') is that factor times x - x'", "bent", 1e-9, ("missing-scale",)),
        exact("estimators of MMD and of its variance against double loops", "estimators", 1e-10, ()),
        Claim(
            "least eigenvalue of a deep kernel's matrix",
            table.per_seed("eigenvalue", np.min),
            at_least=-1e-6,
            rule="exact",
            key=False,
        ),
    ]


def claims(table: Table) -> list[Claim]:
    """The exact checks decide; the detectors on digits support, and show what they cannot: attacks against noise."""
    pgd, cw = table.where(attack="pgd"), table.where(attack="cw")
    return [
        *_exact_claims(table),
        Claim(
            "digits, kernel trained on FGSM: AUROC on PGD, eps 0.1, is at least 0.90",
            pgd.per_seed("auroc", arm="eps-ad"),
            at_least=0.90,
            key=False,
        ),
        Claim(
            "on Carlini-Wagner l2 it is at least 0.55",
            cw.per_seed("auroc", arm="eps-ad"),
            at_least=0.55,
            key=False,
        ),
        Claim(
            "on PGD it is no less, by more than 0.02, than that of the length of a single score",
            pgd.gain("eps-ad", "score norm", "auroc"),
            at_least=-0.02,
            key=False,
        ),
        Claim(
            "PGD against random signs of the same size: AUROC of at most 0.80, so most of what is found is noise",
            table.per_seed("beside_signs", arm="eps-ad"),
            at_most=0.80,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """The variance of the noise over the number of levels, and AUROC by attack and detector, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    theory = np.array([_weights(T)[1] for T in LEVELS])
    shared = []
    for T in LEVELS:
        a, b = _mix(np.arange(1, T + 1) / 1000)
        shared.append(np.mean(b / (a**2 * VARIANCE + b**2)) ** 2)
    measured = np.stack([table.per_seed("variance", T=T) for T in LEVELS]) * theory[:, None]
    left.loglog(LEVELS, theory, "-", label="a fresh z at each level")
    left.loglog(LEVELS, shared, "--", label="one z for all levels")
    left.plot(LEVELS, measured, "o", ms=3, color="0.4")
    left.set(xlabel="levels T", ylabel="variance of EPS's noise", title="Gaussian data (dots: measured)")
    left.legend(frameon=False)
    for k, arm in enumerate(ARMS):
        names = [n for n in ATTACKS if table.where(arm=arm, attack=n).rows]
        values = np.stack([table.where(attack=n).per_seed("auroc", arm=arm) for n in names])
        places = np.array([ATTACKS.index(n) for n in names]) + 0.16 * (k - 1.5)
        right.plot(places, values, "o", ms=3, color=f"C{k}", alpha=0.5)
        right.plot(places, values.mean(1), "_", ms=10, color=f"C{k}", label=arm)
    right.set_xticks(range(len(ATTACKS)), ATTACKS, rotation=30)
    right.set(ylabel="AUROC", title="Digits (one dot a seed)")
    right.legend(frameon=False, fontsize=7, loc="lower left")
    return drawing
