"""Adapt then unlearn: a GAN that was led to what is not wanted shows which weights to keep away from.

A mixture of eight Gaussians on a circle, two of them undesired: the adapted GAN gives almost nothing else. The claim:
after twenty steps on clean samples, when fine-tuning has hardly begun to forget, the GAN that is repelled from its
weights gives fewer of the two, in the mean of five runs of these steps a seed. Exact: the slope of the repulsion, its
forms against closed ones, no repulsion is fine-tuning bit for bit, the penalty of the adaptation is flat where it
starts, and the Frechet distance is that of Gaussians. Support: the modes that are kept, what a hundred steps remove,
over-repulsion, the distance to clean data, and extrapolation that goes as far as removes what the hundred steps do.

Set on pilot GANs of other seeds: forty steps and gamma 300 were expected to show it. Fine-tuning keeps all of the two
modes for about 25 steps here and loses them within the next twenty, and 300 costs the other modes. At 20 steps and
gamma 50 five GANs had 0.3 to 1.3% fewer undesired samples, 0.0 to 0.9% more with a random direction and 0.4 to 1.2%
more with attraction: the bound is 0.2% fewer, where any fewer were asked for. From 30 steps on fine-tuning alone is
ahead: repulsion only begins the forgetting sooner.

Not run: the paper's images, with their distance to a retrained GAN. After 200 steps small GANs of digits give one
digit; the minutes that one of MNIST takes, twice a seed, are beyond what a claim may take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.generate import GANTraining, generated
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import derive, seeded, torch_rng
from assay.unlearn import (
    AdaptThenUnlearn,
    collect_feedback,
    ewc_penalty,
    extrapolated,
    fid,
    repulsion,
    score_fisher,
    weight_distance,
)

MODES, UNDESIRED = 8, 2
ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SPREAD, NEAR = 0.1, 0.4
ETAS = tuple(0.05 * 1.5**k for k in range(12))

_SIZES = {"base": 1800, "lr": 1e-3, "adapt": 400, "short": 20, "long": 100, "repeats": 5, "samples": 1500, "width": 64}

PAPER = Paper(
    slug="adapt-then-unlearn",
    title="Adapt then Unlearn: Exploring Parameter Space Semantics for Unlearning in Generative Adversarial Networks",
    authors="Piyush Tiwary, Atri Guha, Subhodip Panda, Prathosh A. P.",
    year=2023,
    arxiv="2309.14054",
    room="unlearn",
    also=("generate",),
    kind="method",
    implements=(
        "unlearn.AdaptThenUnlearn",
        "unlearn.repulsion",
        "unlearn.ewc_penalty",
        "unlearn.score_fisher",
        "unlearn.extrapolated",
        "unlearn.percent_unlearned",
        "generate.GANTraining",
    ),
    claim="Away from the weights of a GAN adapted to the undesired, training on clean samples forgets it sooner.",
    headline="MNIST classes and CelebA-HQ attributes: 90 to 100% fewer undesired samples, FID a few points higher.",
    peers=("rosinality/stylegan2-pytorch", "atriguha/Adapt_Unlearn"),
    shams={
        "random-direction": "the adapted weights are replaced by random ones as far away, tensor by tensor",
        "wrong-sign": "the generator is drawn to the adapted weights: the repulsion's sign is flipped",
    },
    baselines=("fine-tune", "ewc", "extrapolation"),
    scales=(
        Scale("smoke", 1, _SIZES | {"base": 300, "lr": 3e-3, "adapt": 40, "short": 10, "long": 15, "repeats": 2}),
        Scale("claim", 10, _SIZES | {"samples": 10_000, "width": 128}),
        Scale("gpu", 10, _SIZES | {"base": 6000, "samples": 50_000, "width": 256}),
    ),
)


class _WrongSign(AdaptThenUnlearn):
    """It is drawn to the adapted weights."""

    def away(self, generator: nn.Module, adapted: Sequence[Mapping[str, Tensor]]) -> Callable[[nn.Module], Tensor]:
        penalty = super().away(generator, adapted)
        return lambda model: -penalty(model)


class _Points(nn.Module):
    """A generator of points in the plane."""

    def __init__(self, width: int, latent: int = 4) -> None:
        super().__init__()
        self.latent, self.body = latent, _mlp(latent, width, 2, nn.ReLU())

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n 2"]:
        return self.body(z)


def _mlp(inputs: int, width: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [nn.Linear(size, width), activation]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _mixture(n: int, seed: int) -> Float[Tensor, "n 2"]:
    g = torch_rng(seed, "mixture")
    which = torch.randint(MODES, (n,), generator=g)
    return CENTRES[which] + SPREAD * torch.randn(n, 2, generator=g)


def _nearest(x: Float[Tensor, "n 2"]) -> Int[Tensor, " n"]:
    """The centre within four deviations of each sample, else the number of centres."""
    near = torch.cdist(x, CENTRES).min(1)
    return near.indices.where(near.values < NEAR, torch.tensor(MODES))


def _modes(x: Float[Tensor, "n 2"]) -> Float[Tensor, 9]:
    """The share of samples near each centre, and of those near none."""
    return _nearest(x).bincount(minlength=MODES + 1).double() / len(x)


def _undesired(x: Float[Tensor, "n 2"]) -> Tensor:
    return _nearest(x) < UNDESIRED


def _row(arm: str, given: dict[str, Any], generators: Sequence[nn.Module], scale: Scale) -> dict[str, Any]:
    """Means over generators, of the same latents for every arm: the shares of undesired and kept modes, what is
    unlearned (%), and the Frechet distance to clean data.
    """
    samples = [generated(g, scale["samples"], seed=given["seed"]) for g in generators]
    shares = torch.stack([_modes(x) for x in samples]).mean(0)
    bad, kept = float(shares[:UNDESIRED].sum()), shares[UNDESIRED:MODES]
    pul = 100 * (given["before"] - bad) / given["before"]
    distance = float(np.mean([fid(x, given["clean"], lambda points: points) for x in samples]))
    return {
        "arm": arm,
        "undesired": bad,
        "kept": float(kept.sum()),
        "least": float(kept.min()),
        "pul": pul,
        "fid": distance,
    }


def _forgotten(
    method: AdaptThenUnlearn, given: dict[str, Any], sham: str | None = None, repeats: int = 1
) -> list[nn.Module]:
    """Stage 2 from the given pair and the given adapted weights, or the sham's."""
    adapted = given["adapted"]
    if sham == "random-direction":
        adapted = [_elsewhere(given["pair"][0], other, given["seed"]) for other in adapted]
    if sham == "wrong-sign":
        method = _WrongSign(**vars(method))
    sets, seeds = (given["negatives"], given["positives"]), [derive(given["seed"], k) for k in range(repeats)]
    return [method.forget(given["pair"], *sets, seed=k, adapted=adapted)[0] for k in seeds]


def _elsewhere(generator: nn.Module, adapted: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights as far from the generator's as ``adapted``, tensor by tensor, in random directions."""
    found = {}
    for name, p in generator.named_parameters():
        direction = torch.randn(p.shape, generator=torch_rng(seed, "direction", name))
        found[name] = p.detach() + direction * ((adapted[name] - p.detach()).norm() / direction.norm())
    return found


def _slope(method: AdaptThenUnlearn, seed: int) -> float:
    """Relative distance of the gradient of what stage 2 adds, near the adapted weights, from -100 gamma grad v."""
    with seeded(seed, "slope"):
        model = _mlp(3, 5, 2, nn.Tanh()).double()
        adapted = {n: p.detach() + 1e-5 * torch.randn_like(p) for n, p in model.named_parameters()}
    names = dict(model.named_parameters())
    loss = replace(method, gamma=2.0).away(model, [adapted])(model)
    found = torch.autograd.grad(loss, list(names.values()))
    expected = [-200 * 2 * (p.detach() - adapted[n]) / (len(names) * p.numel()) for n, p in names.items()]
    gaps, size = [f - e for f, e in zip(found, expected, strict=True)], torch.cat([e.flatten() for e in expected])
    return float(torch.cat([g.flatten() for g in gaps]).norm() / size.norm())


def _forms_gap() -> float:
    """Largest difference of the repulsions of two weights, and of their slopes, from closed forms at gamma 3."""
    here, *others = torch.tensor([[0.7, -0.4], [0.2, 0.1], [-0.7, 0.0]], dtype=torch.float64)
    v = ((0.5**2 + 0.5**2) / 2 + (1.4**2 + 0.4**2) / 2) / 2
    top = 100 * math.exp(-3 * v)
    expected = {"el2": (top, -3 * top), "nl2": (-3 * v, -3), "il2": (3 / v, -3 / v**2)}
    two, gaps = [{"a": w[:1], "b": w[1:]} for w in others], []
    for form, (value, slope) in expected.items():
        theta = here[:1].clone().requires_grad_()
        found = repulsion({"a": theta, "b": here[1:]}, two, form, 3.0)
        (gradient,) = torch.autograd.grad(found, theta)
        gaps += [float(found.detach()) - value, float(gradient) - slope * (0.5 + 1.4) / 2]
    return max(map(abs, gaps))


def _exact(given: dict[str, Any], method: AdaptThenUnlearn, seed: int) -> dict[str, float]:
    """Forms on two weights, fine-tuning without the method, EWC at its anchor, and the Frechet distance."""
    generator, judge = given["pair"]
    run = GANTraining(steps=3, batch_size=method.batch, lr=method.lr, r1=method.r1, ema=method.ema)
    plain = replace(method, gamma=0.0, unlearn_iters=3)
    first, _ = plain.forget(given["pair"], given["negatives"], given["positives"], seed=seed)
    optimizers, where = given["pair"].optimizers_, derive(seed, "unlearn")
    second, _ = run.fit(generator, judge, given["positives"], seed=where, optimizers=optimizers)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    weights = dict(generator.named_parameters())
    anchor, fisher = {n: p.detach() for n, p in weights.items()}, score_fisher(generator, judge, seed=seed)
    flat = ewc_penalty(weights, anchor, fisher, 1e6)
    rise = torch.autograd.grad(flat, list(weights.values()), materialize_grads=True)
    return {
        "forms": _forms_gap(),
        "plain": max(float((a - b).detach().abs().max()) for a, b in pairs),
        "flat": float(flat.detach()) + max(float(g.abs().max()) for g in rise),
        "frechet": _frechet_gap(seed),
    }


def _frechet_gap(seed: int) -> float:
    """Samples with exact means m and deviations s: |m - m'|^2 + sum (s - s')^2."""
    noise = torch.randn(400, 3, generator=torch_rng(seed, "frechet"), dtype=torch.float64)
    white = torch.linalg.qr(noise - noise.mean(0))[0] * (len(noise) - 1) ** 0.5
    m, s, t = (torch.tensor(v).double() for v in ([1.0, -2.0, 0.5], [1.0, 2.0, 0.3], [0.5, 2.5, 1.0]))
    expected = float(m.square().sum() + (s - t).square().sum())
    return abs(fid(white * s, m + white * t, lambda x: x) - expected) / expected


def _weight(stage: AdaptThenUnlearn, given: dict[str, Any], x: Tensor) -> float:
    """The weight at which EWC is log 2, as the adversarial loss of equals, after 50 steps that go without it."""
    generator, judge = given["pair"]
    first, optimizers = replace(stage, adapt_iters=50, n_adapted=1), given["pair"].optimizers_
    (moved,) = first.adapt(generator, judge, x, seed=given["seed"], optimizers=optimizers)
    anchor = {n: p.detach() for n, p in generator.named_parameters()}
    return math.log(2) / float(ewc_penalty(moved, anchor, score_fisher(generator, judge, seed=given["seed"]), 1.0))


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The pair, its feedback, the adapted weights, and the arms that no sham changes."""
    with seeded(seed, "init"):
        start, judge = _Points(scale["width"]), _mlp(2, scale["width"], 1, nn.LeakyReLU(0.2))
    first = GANTraining(steps=scale["base"], batch_size=64, lr=scale["lr"], r1=0.1, ema=0.98)
    pair = first.fit(start, judge, _mixture(6000, seed), seed=seed)
    negatives, positives = collect_feedback(pair[0], _undesired, 6000, seed=seed)
    before = float(_modes(generated(pair[0], scale["samples"], seed=seed))[:UNDESIRED].sum())
    data = _mixture(scale["samples"], derive(seed, "clean"))
    given: dict[str, Any] = {"pair": pair, "seed": seed, "before": before, "clean": data[~_undesired(data)]}
    given |= {"negatives": negatives[:300], "positives": positives[:3000]}
    stage = AdaptThenUnlearn(batch=64, r1=0.1, ema=0.98, lr=5e-4, ewc_weight=0.0, n_adapted=1)
    first_stage, optimizers = replace(stage, adapt_iters=scale["adapt"]), pair.optimizers_
    given["adapted"] = first_stage.adapt(*pair, given["negatives"], seed=seed, optimizers=optimizers)
    given["short"] = short = replace(stage, lr=3e-4, gamma=50.0, unlearn_iters=scale["short"])
    given["long"] = long = replace(stage, gamma=1.0, unlearn_iters=scale["long"])
    distance = float(weight_distance({n: p.detach() for n, p in pair[0].named_parameters()}, given["adapted"]))
    arms = {
        "fine-tune": replace(short, repulsion="none"),
        "ewc": replace(short, repulsion="ewc", ewc_weight=_weight(stage, given, given["negatives"])),
        "too strong": replace(short, gamma=500.0),
    }
    end = _row("fine-tune, long", given, _forgotten(replace(long, repulsion="none"), given), scale)
    away = [_row("extrapolation", given, [extrapolated(pair[0], given["adapted"], e)], scale) for e in ETAS]
    given["rows"] = [
        _row("original", given, [pair[0]], scale),
        {**_row("adapted", given, [extrapolated(pair[0], given["adapted"][:1], -1.0)], scale), "distance": distance},
        *(_row(arm, given, _forgotten(method, given, repeats=scale["repeats"]), scale) for arm, method in arms.items()),
        end,
        min(away, key=lambda row: abs(row["pul"] - end["pul"])),
        {"arm": "exact", **_exact(given, short, seed)},
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Stage 2 with repulsion at both lengths, and the slope of the repulsion."""
    kind = _WrongSign if sham == "wrong-sign" else AdaptThenUnlearn
    repeats = {"short": scale["repeats"], "long": 1}
    rows = [_row(arm, given, _forgotten(given[arm], given, sham, k), scale) for arm, k in repeats.items()]
    return Table.of([*given["rows"], *rows, {"arm": "slope", "slope": _slope(kind(), seed)}])


def claims(table: Table) -> list[Claim]:
    """The undesired share after the short stage and the exact checks decide."""
    checks = (
        ("the repulsions and their slopes on two weights: largest difference from closed forms", "forms", 1e-9),
        ("gamma = 0 is fine-tuning bit for bit: largest difference of a weight", "plain", 0.0),
        ("EWC where it starts: its value and its largest slope", "flat", 0.0),
        ("the Frechet distance of Gaussian samples: relative difference from the formula", "frechet", 1e-6),
    )
    fids = {arm: table.per_seed("fid", arm=arm) for arm in ("original", "long")}
    kept = table.per_seed("kept", arm="short") / table.per_seed("kept", arm="fine-tune")
    support = (
        ("what the repelled GAN keeps of the other modes, over what fine-tuning keeps", kept, 0.95),
        ("undesired samples that the long stage removes, in percent", table.per_seed("pul", arm="long"), 80.0),
        ("the share of the least of the kept modes after it", table.per_seed("least", arm="long"), 0.05),
        ("what ten times the repulsion loses of the other modes", table.gain("fine-tune", "too strong", "kept"), 0.08),
        ("share of undesired samples of the adapted GAN", table.per_seed("undesired", arm="adapted"), 0.8),
        ("the share of kept modes, long stage less extrapolation", table.gain("long", "extrapolation", "kept"), 0.0),
        ("Frechet distance to clean data, extrapolation less long", table.gain("extrapolation", "long", "fid"), 0.0),
        ("the same of the original GAN over that after the long stage", fids["original"] / fids["long"], 2 / 3),
    )
    sooner = "share of undesired samples after the short stage, repelled less fine-tuned"
    less, both = table.gain("short", "fine-tune", "undesired"), ("random-direction", "wrong-sign")
    nearer = "Frechet distance to clean data after the short stage, repelled less fine-tuned"
    slope = "near the adapted weights the repulsion's gradient is -100 gamma grad v: relative distance"
    slopes = table.per_seed("slope", np.max)
    return [
        Claim(sooner, less, at_most=-0.002, refuted_by=both),
        Claim(nearer, table.gain("short", "fine-tune", "fid"), at_most=-0.02, key=False, refuted_by=both),
        Claim(slope, slopes, at_most=1e-6, rule="exact", refuted_by=("wrong-sign",)),
        *(Claim(text, table.per_seed(c, np.max), at_most=top, rule="exact") for text, c, top in checks),
        *(Claim(text, values, at_least=least, key=False) for text, values, least in support),
    ]


def figure(table: Table) -> Figure:
    """Undesired and kept shares by arm."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = drawing.subplots()
    shown = {"short": "repelled", "long": "repelled, long"}
    arms = ("original", "adapted", "ewc", "fine-tune", "short", "too strong", "fine-tune, long", "long")
    for k, column in enumerate(("undesired", "kept")):
        heights = [table.per_seed(column, arm=a).mean() for a in arms]
        axes.bar(np.arange(len(arms)) + 0.4 * k - 0.2, heights, 0.38, label=column)
    axes.set_xticks(range(len(arms)), [shown.get(a, a) for a in arms], rotation=20)
    axes.set(ylabel="share of samples", title="Two of eight modes unlearned")
    axes.legend(frameon=False)
    return drawing
