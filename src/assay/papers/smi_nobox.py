"""Hard no-box attacks on motions: no victim, no training data, no labels; and gradients that know the motion.

Exact: the motion-informed gradient is the derivative of a loss of the whole clip along a change of one frame that the
autoregression passes on to the next two, by automatic differentiation through the unrolled recursion. Time-varying
autoregression finds the coefficients of a known process, and without them the attack is MI-FGSM. Learned: on synthetic
people (eight actions, forward kinematics of 15 joints) the attacker has other people's clips than the three victims
were trained on, unlabelled. In its own representation most clips come to lie next to those of another action, and the
victims are fooled more often than by random signs of the same size. ``eps`` was scaled once so that white-box I-FGSM
fools about nine in ten. The wrong sign loses the first of these claims only: it does not pull a clip back but away from
all others, and as a step of signs moves every coordinate whatever the loss, that fools too (pilots: half as often as
the attack). The two views of the contrastive stage are convolutions over time here; the paper's graph network costs ten
times as much and is left to the gpu scale, on NTU-60. Support: what the motion adds to the plain gradient (fooling,
acceleration), also on another victim than the one it was taken of.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import (
    MIFGSM,
    SMIFGSM,
    TVAR,
    Linf,
    NoBoxLoss,
    NoBoxManifoldAttack,
    RandomSigns,
    SkeletonMoCo,
    SMIGradient,
    imperceptibility,
    motion_responses,
)
from assay.attacks.motion.nobox_loss import Dissimilar
from assay.data import HUMAN, Data, load_data, synthetic_motions
from assay.data.skeleton_files import NTU_PARENTS
from assay.nets import MotionGRU, TemporalCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.training import Supervised

BETA = (0.6, -0.3)  # of the known process
ORDERS = {"plain": 0, "s1mi": 1, "s2mi": 2}

PAPER = Paper(
    slug="smi-nobox",
    title="Hard No-Box Adversarial Attack on Skeleton-Based Human Action Recognition with Skeleton-Motion-Informed "
    "Gradient",
    authors="Zhengzhi Lu, He Wang, Ziyi Chang, Guoan Yang, Hubert P. H. Shum",
    year=2023,
    arxiv="2308.05681",
    room="attacks",
    also=("sequence",),
    kind="method",
    implements=(
        "attacks.NoBoxManifoldAttack",
        "attacks.NoBoxLoss",
        "attacks.SMIGradient",
        "attacks.SMIFGSM",
        "attacks.SkeletonMoCo",
        "attacks.TVAR",
        "attacks.smi",
        "attacks.motion_responses",
        "attacks.imperceptibility",
    ),
    claim="Action classifiers are fooled with neither the victim, nor its training data, nor labels at hand.",
    headline="NTU-60: several victims fooled on more than half of the clips, adapted no-box attacks on far fewer.",
    peers=("tvReg::tvAR", "torchattacks.MIFGSM"),
    baselines=("random signs", "plain", "s1mi", "white box"),
    shams={
        "reversed-shift": "each frame gets the gradients of the two before it, with the same coefficients",
        "wrong-sign": "the no-box loss is climbed: clips are held to their own clean embedding, away from all others",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"source": "synthetic", "clips": 160, "frames": 12, "attacked": 24, "epochs": 3, "moco": 2, "graph": False}
            | {"steps": 4, "eps": 0.055, "clusters": 20, "process": (8, 500)},
        ),
        Scale(
            "claim",
            5,
            {"source": "synthetic", "clips": 600, "frames": 32, "attacked": 96, "epochs": 12, "moco": 50}
            | {"graph": False, "steps": 20, "eps": 0.055, "clusters": 40, "process": (12, 2000)},
        ),
        Scale(
            "gpu",
            5,
            {"source": "ntu", "attacked": 2000, "epochs": 60, "moco": 450, "graph": True}
            | {"steps": 400, "eps": 0.01, "clusters": 120, "process": (12, 2000)},
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _ReversedShift(SMIGradient):
    """Each frame gets the gradients of the frames before it."""

    def combine(self, grad: Float[Tensor, "n ..."], responses: Float[Tensor, "n p ..."]) -> Float[Tensor, "n ..."]:
        backwards = super().combine(grad.flip(self.time_dim), responses.flip(self.time_dim + 1))
        return backwards.flip(self.time_dim)


@dataclass(frozen=True, kw_only=True)
class _WrongSign(NoBoxLoss):
    """The loss with its sign turned."""

    def of(self, features: Float[Tensor, "n d"], goal: Dissimilar) -> Float[Tensor, " n"]:
        return -super().of(features, goal)


@dataclass(frozen=True, kw_only=True)
class _Sequences(SkeletonMoCo):
    """Two convolutions over time, of width 9 and 3, see a clip: a tenth of the work of the graph network."""

    def views(self, parents: tuple[int, ...], persons: int) -> tuple[nn.Module, nn.Module]:
        shape = (len(parents), persons, self.dim)
        return TemporalCNN(*shape, (24, 48), 9), TemporalCNN(*shape, (32, 64), 3)


def clip_loss(x: Float[Tensor, "n c t"]) -> Float[Tensor, " n"]:
    """A smooth function of a whole clip that is linear in no frame: sines of running products and sums."""
    return (x.sin() * (1.3 * x).cumsum(2).cos()).sum((1, 2)) + (x[:, :, 1:] * x[:, :, :-1]).tanh().sum((1, 2))


def unrolled_slope(x: Float[Tensor, "c t"], beta: Float[Tensor, "c p t"], lags: int) -> Float[Tensor, "c t"]:
    """d clip_loss / d a, where a is added to one entry and the autoregression runs on for ``lags`` frames.

    x_s = sum_j beta_j(s) x_{s-j} + e_s with the innovations e of the clip; after ``lags`` frames the clip is as it was.
    One copy of the clip for every entry, all rolled on at once, differentiated by autograd.
    """
    c, t = x.shape
    entries = torch.arange(c * t)
    channel, frame = entries // t, entries % t
    nudge = torch.zeros(c * t, dtype=x.dtype, requires_grad=True)
    paths = list(x.expand(c * t, c, t).unbind(2))
    own = F.one_hot(channel, c).to(x)
    for s in range(t):
        fed = torch.zeros_like(paths[s])
        for j in range(1, min(s, beta.shape[1]) + 1):
            fed = fed + beta[:, j - 1, s] * (paths[s - j] - x[:, s - j])
        follows = (frame < s) & (frame >= s - lags)
        here = (frame == s).to(x)[:, None] * own * nudge[:, None]
        paths[s] = paths[s] + here + follows.to(x)[:, None] * fed
    (slope,) = torch.autograd.grad(clip_loss(torch.stack(paths, 2)).sum(), nudge)
    return slope.reshape(c, t)


def slope_error(smi: SMIGradient, seed: int) -> float:
    """Largest difference of the motion-informed gradient from ``unrolled_slope`` over all entries, over its size.

    The clip is one of a known process; a constant process and one whose coefficients change from frame to frame.
    """
    g = torch_rng(seed, "slope")
    c, t, p = 3, 12, smi.order
    x = torch.randn(c, t, generator=g, dtype=torch.float64)
    steady = torch.tensor(BETA[:p], dtype=torch.float64)[None, :, None].expand(c, p, t)
    varying = steady + 0.5 * torch.randn(c, p, t, generator=g, dtype=torch.float64)
    grad = torch.func.grad(lambda z: clip_loss(z[None])[0])(x)
    worst = 0.0
    for beta in (steady, varying):
        known = beta * (torch.arange(t) >= torch.arange(1, p + 1)[:, None])
        found = smi.combine(grad[None], motion_responses(known)[None])[0]
        expected = unrolled_slope(x, known, p)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def coefficient_error(shape: tuple[int, int], seed: int) -> float:
    """Largest difference of the mean fitted coefficients from those of a known stationary process.

    ``shape`` (n, t): n series of t values of x_s = 0.6 x_{s-1} - 0.3 x_{s-2} + e_s, e standard normal.
    """
    from scipy.signal import lfilter

    noise = torch.randn(*shape, generator=torch_rng(seed, "process"), dtype=torch.float64).numpy()
    series = torch.from_numpy(lfilter([1.0], [1.0, -BETA[0], -BETA[1]], noise))
    found = TVAR(bandwidth=0.25).fit(series).coef_[:, :, 2:].mean((0, 2))
    return float((found - torch.tensor(BETA, dtype=torch.float64)).abs().max())


def ols_error(seed: int) -> float:
    """Largest difference of TVAR's common fit from least squares: on the lags ("lc"), with their slopes ("ll")."""
    x = torch.randn(4, 40, generator=torch_rng(seed, "ols"), dtype=torch.float64)
    lags, target = torch.stack((x[:, 1:-1], x[:, :-2]), 2), x[:, 2:, None]
    time = torch.arange(1, 39, dtype=torch.float64)[:, None] / 38
    plain = torch.linalg.lstsq(lags, target).solution
    sloped = torch.linalg.lstsq(torch.cat((lags, time * lags), 2), target).solution[:, :, 0]
    expected = {"lc": plain.expand(-1, -1, 38), "ll": sloped[:, :2, None] + sloped[:, 2:, None] * time[:, 0]}
    found = {e: TVAR(bandwidth=math.inf, estimator=e).fit(x).coef_[:, :, 2:] for e in expected}  # type: ignore[arg-type]
    return max(float((found[e] - expected[e]).abs().max()) for e in expected)


def _clips(scale: Scale, seed: int) -> tuple[Data, tuple[int, ...]]:
    """The clips, and the tree of their joints."""
    if scale["source"] == "synthetic":
        return synthetic_motions(scale["clips"], frames=scale["frames"], seed=seed), HUMAN.parents
    return load_data(f"ntu:{os.environ.get('ASSAY_DATA', '.')}/ntu"), NTU_PARENTS


def _victims(train: Data, joints: int, epochs: int, seed: int) -> list[nn.Module]:
    shape = {"joints": joints, "persons": train.shape[3], "classes": len(train.classes)}
    makers: list[Callable[..., nn.Module]] = [TemporalCNN, partial(TemporalCNN, widths=(24, 48), kernel=7), MotionGRU]
    fitted = []
    for k, make in enumerate(makers):
        with seeded(seed, "victim", k):
            start = make(**shape)
        fitted.append(Supervised(epochs=epochs, lr=5e-3).fit(start, train, seed=derive(seed, k)))
    return fitted


def _rates(given: dict[str, Any], moved: list[Tensor]) -> list[float]:
    """For each victim the share of the clips that it had right whose class ``moved``, one a victim, changes."""
    test, rates = given["test"], []
    for victim, clean, x_adv in zip(given["victims"], given["classes"], moved, strict=True):
        right = clean == test.y
        rates.append(float((predict(victim, x_adv).argmax(1) != clean)[right].float().mean()))
    return rates


def _row(arm: str, given: dict[str, Any], moved: list[Tensor]) -> dict[str, Any]:
    shown = imperceptibility(given["test"].x, moved[0], given["parents"])
    pool, test = given["pool"], given["test"]
    clean, after = (F.normalize(predict(given["encoder"], x), dim=1) for x in (pool.x, moved[0]))
    likeness = (after @ clean.T).masked_fill(test.index[:, None] == pool.index, -1.0)
    other = pool.y[likeness.argmax(1)] != test.y
    measured = {
        "lost": float(other.float().mean()),
        "acceleration": shown.acceleration,
        "jerk": shown.jerk,
        "bone": shown.bone,
        "l2": shown.l2,
    }
    return {"arm": arm, "rate": float(np.mean(_rates(given, moved))), **measured}


def _no_box(scale: Scale, given: dict[str, Any], seed: int, smi: SMIGradient, loss: NoBoxLoss) -> list[Tensor]:
    attack = NoBoxManifoldAttack(
        eps=scale["eps"],
        alpha=4 * scale["eps"] / scale["steps"],
        steps=scale["steps"],
        n_clusters=scale["clusters"],
        smi=smi,
        loss=loss,
        bounds=given["test"].bounds,
    )
    fitted = attack.fit(given["encoder"], given["pool"].x, seed=seed)
    return [fitted(given["test"].x, seed=seed, frames=given["test"].fields["frames"])] * len(given["victims"])


def _white_box(scale: Scale, given: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """I-FGSM on each victim with the labels; and the first victim's clips, with motion or without, on the others."""
    test = given["test"]
    own = {"steps": scale["steps"], "step_size": 4 / scale["steps"], "bounds": test.bounds, "ball": Linf(scale["eps"])}
    attack = SMIFGSM(smi=_smi(0), momentum=0.0, **own)
    rows = [_row("white box", given, [attack(victim, test.x, test.y, seed=seed) for victim in given["victims"]])]
    for arm in ("plain", "s2mi"):
        moved = SMIFGSM(smi=_smi(ORDERS[arm]), **own)(given["victims"][0], test.x, test.y, seed=seed)
        rates = _rates(given, [moved] * len(given["victims"]))
        rows.append({"arm": f"white box, {arm}, transferred", "transfer": float(np.mean(rates[1:]))})
    return rows


def _smi(order: int, form: type[SMIGradient] = SMIGradient) -> SMIGradient:
    return form(order=order, bandwidth=0.7)


def _loss(scale: Scale, form: type[NoBoxLoss] = NoBoxLoss) -> NoBoxLoss:
    """The authors leave out 10 of 120 centres."""
    return form(exclude_nearest=max(scale["clusters"] // 12, 1))


def _plain_difference(given: dict[str, Any], scale: Scale, seed: int) -> float:
    """Largest difference of the attack without coefficients from MI-FGSM, on the first victim, in double precision."""
    victim, test = copy.deepcopy(given["victims"][0]).double(), given["test"]
    options = {"ball": Linf(scale["eps"]), "steps": 5, "bounds": test.bounds}
    x, y = test.x[:16].double(), test.y[:16]
    pair = [attack(victim, x, y, seed=seed) for attack in (SMIFGSM(smi=_smi(0), **options), MIFGSM(**options))]
    return float((pair[0] - pair[1]).abs().max())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Victims on labelled clips, the encoder on the attacker's unlabelled ones, and the arms that no sham changes."""
    data, parents = _clips(scale, seed)
    train, pool = data.split(0.6, seed=seed)
    given: dict[str, Any] = {"parents": parents, "pool": pool, "test": pool.limit(scale["attacked"], seed=seed)}
    given["victims"] = _victims(train, len(parents), scale["epochs"], seed)
    given["classes"] = [predict(v, given["test"].x).argmax(1) for v in given["victims"]]
    contrast = SkeletonMoCo if scale["graph"] else _Sequences
    given["encoder"] = contrast(epochs=scale["moco"]).fit_encoder(pool.x, parents, seed=seed)
    signs = RandomSigns(eps=scale["eps"], bounds=data.bounds).fit(given["encoder"], pool.x, seed=seed)
    noise = [signs(given["test"].x, seed=seed)] * len(given["victims"])
    accuracy = [float((c == given["test"].y).float().mean()) for c in given["classes"]]
    given["rows"] = [
        {**_row("random signs", given, noise), "accuracy": float(np.mean(accuracy))},
        *_white_box(scale, given, seed),
        *(_row(arm, given, _no_box(scale, given, seed, _smi(ORDERS[arm]), _loss(scale))) for arm in ("plain", "s1mi")),
        {"arm": "checks", "coefficients": coefficient_error(scale["process"], seed), "ols": ols_error(seed)},
        {"arm": "checks", "plain": _plain_difference(given, scale, seed)},
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact slope, and the second-order attack beside the arms of the setup."""
    smi = _smi(2, _ReversedShift if sham == "reversed-shift" else SMIGradient)
    loss = _loss(scale, _WrongSign if sham == "wrong-sign" else NoBoxLoss)
    own = _row("s2mi", given, _no_box(scale, given, seed, smi, loss))
    return Table.of([{**own, "slope": slope_error(smi, seed)}, *given["rows"]])


def claims(table: Table) -> list[Claim]:
    """The exact checks and the fooling rate against noise decide; what the motion adds supports."""
    acceleration = table.per_seed("acceleration", arm="s2mi") / table.per_seed("acceleration", arm="plain")
    return [
        Claim(
            "motion-informed gradient against the derivative through the unrolled recursion: largest relative error",
            table.per_seed("slope"),
            at_most=1e-6,
            rule="exact",
            refuted_by=("reversed-shift",),
        ),
        Claim(
            "TVAR on x_s = 0.6 x_{s-1} - 0.3 x_{s-2} + e_s: error of the mean coefficients",
            table.per_seed("coefficients"),
            at_most=0.05,
            rule="exact",
        ),
        Claim("TVAR of infinite bandwidth against least squares", table.per_seed("ols"), at_most=1e-6, rule="exact"),
        Claim(
            "without coefficients the attack is MI-FGSM: largest difference of its clips",
            table.per_seed("plain"),
            at_most=1e-9,
            rule="exact",
        ),
        Claim(
            "fooling rate of the no-box attack over that of random signs",
            table.gain("s2mi", "random signs", "rate"),
            at_least=0.15,
        ),
        Claim(
            "share of the clips that the attacker's encoder finds most like a clip of another action",
            table.per_seed("lost", arm="s2mi"),
            at_least=0.5,
            refuted_by=("wrong-sign",),
        ),
        Claim(
            "fooling rate over that of the no-box attack without motion",
            table.gain("s2mi", "plain", "rate"),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "difference of accelerations from the clean clips, as a share of that without motion",
            acceleration,
            at_most=0.95,
            key=False,
        ),
        Claim(
            "MI-FGSM on one victim, fooling the others: what the motion adds",
            table.gain("white box, s2mi, transferred", "white box, plain, transferred", "transfer"),
            at_least=0.0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Fooling rates, and how much the clips' acceleration changes, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    names = {"random signs": "random\nsigns", "plain": "I-FGSM\nno-box", "s1mi": "S1MI\nno-box", "s2mi": "S2MI\nno-box"}
    names |= {"white box": "I-FGSM\nwhite box"}
    for panel, column in ((left, "rate"), (right, "acceleration")):
        for k, arm in enumerate(names):
            values = table.per_seed(column, arm=arm)
            panel.plot([k], [values.mean()], "_", ms=20, color="C0")
            panel.plot(np.full(len(values), k), values, "o", ms=3, color="0.5")
        panel.set_xticks(range(len(names)), list(names.values()), fontsize=8)
        panel.set_ylim(0, None)
    left.set(ylabel="fooling rate", title="Three victims, eight actions")
    right.set(ylabel="metres a frame²", title="Difference of accelerations")
    return drawing
