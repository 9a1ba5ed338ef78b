"""Adapt then unlearn: a GAN that was led to what is not wanted shows which weights to keep away from.

A mixture of eight Gaussians on a circle, two of them undesired: the adapted GAN gives almost nothing else, and after
forty steps on clean samples the GAN that is repelled from its weights gives less of the two than one that is not.
Exact: the slope of the repulsion, its forms against closed ones, no repulsion is fine-tuning bit for bit, the penalty
of the adaptation is flat where it starts, and the Frechet distance is that of Gaussians. Support: the modes that are
kept, what a hundred steps remove, over-repulsion, and the baselines: fine-tuning, with EWC, and extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
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

CENTRES = 8
UNDESIRED = 2
SPREAD = 0.1
NEAR = 4 * SPREAD

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
        "generate.StyleGANLike",
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
        Scale("smoke", 1, {"base": 150, "adapt": 40, "short": 10, "long": 15, "samples": 1500, "width": 32}),
        Scale("claim", 5, {"base": 1800, "adapt": 400, "short": 40, "long": 100, "samples": 10_000, "width": 128}),
        Scale("gpu", 10, {"base": 6000, "adapt": 400, "short": 40, "long": 100, "samples": 50_000, "width": 256}),
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


def _centres() -> Float[Tensor, "8 2"]:
    angle = torch.arange(CENTRES) * (2 * math.pi / CENTRES)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1)


def _mixture(n: int, seed: int) -> Float[Tensor, "n 2"]:
    g = torch_rng(seed, "mixture")
    which = torch.randint(CENTRES, (n,), generator=g)
    return _centres()[which] + SPREAD * torch.randn(n, 2, generator=g)


def _modes(x: Float[Tensor, "n 2"]) -> Float[Tensor, 9]:
    """The share of samples within four deviations of each centre, and of those near none."""
    near = torch.cdist(x, _centres()).min(1)
    which = near.indices.where(near.values < NEAR, torch.tensor(CENTRES))
    return which.bincount(minlength=CENTRES + 1).double() / len(x)


def _undesired(x: Float[Tensor, "n 2"]) -> Tensor:
    near = torch.cdist(x, _centres()).min(1)
    return (near.values < NEAR) & (near.indices < UNDESIRED)


def _row(arm: str, given: dict[str, Any], generator: nn.Module, scale: Scale) -> dict[str, Any]:
    """Shares of the undesired and the kept modes, of the same latents for every arm, and what is unlearned (%)."""
    shares = _modes(generated(generator, scale["samples"], seed=given["seed"]))
    bad, kept = float(shares[:UNDESIRED].sum()), shares[UNDESIRED:CENTRES]
    pul = 100 * (given["before"] - bad) / given["before"]
    return {"arm": arm, "undesired": bad, "kept": float(kept.sum()), "least": float(kept.min()), "pul": pul}


def _unlearned(
    arm: str, method: AdaptThenUnlearn, given: dict[str, Any], scale: Scale, sham: str | None = None
) -> dict[str, Any]:
    """The row of stage 2 from the given pair and the given adapted weights, or the sham's."""
    adapted = given["adapted"]
    if sham == "random-direction":
        adapted = [_elsewhere(given["pair"][0], other, given["seed"]) for other in adapted]
    if sham == "wrong-sign":
        method = _WrongSign(**vars(method))
    found, _ = method.forget(given["pair"], given["negatives"], given["positives"], seed=given["seed"], adapted=adapted)
    return _row(arm, given, found, scale)


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
    points = [{"a": 0.2, "b": 0.1}, {"a": -0.7, "b": 0.0}]
    two = [{k: torch.tensor([t], dtype=torch.float64) for k, t in point.items()} for point in points]
    v = ((0.5**2 + 0.5**2) / 2 + (1.4**2 + 0.4**2) / 2) / 2
    values = {"el2": 100 * math.exp(-3 * v), "nl2": -3 * v, "il2": 3 / v}
    slopes = {"el2": -300 * math.exp(-3 * v), "nl2": -3.0, "il2": -3 / v**2}

    def gap(form: str) -> float:
        theta = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        found = repulsion({"a": theta, "b": torch.tensor([-0.4], dtype=torch.float64)}, two, form, 3.0)
        (slope,) = torch.autograd.grad(found, theta)
        return max(abs(float(found.detach()) - values[form]), abs(float(slope) - slopes[form] * (0.5 + 1.4) / 2))

    return max(gap(form) for form in values)


def _exact(given: dict[str, Any], method: AdaptThenUnlearn, seed: int) -> dict[str, float]:
    """Forms on two weights, fine-tuning without the method, EWC at its anchor, and the Frechet distance."""
    generator, judge = given["pair"]
    run = GANTraining(steps=3, batch_size=method.batch, lr=method.lr, r1=method.r1, ema=method.ema)
    plain = replace(method, gamma=0.0, unlearn_iters=3)
    first, _ = plain.forget(given["pair"], given["negatives"], given["positives"], seed=seed)
    second, _ = run.fit(generator, judge, given["positives"], seed=derive(seed, "unlearn"))
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
    centred = noise - noise.mean(0)
    white = torch.linalg.qr(centred)[0] * (len(noise) - 1) ** 0.5
    m, s, t = (torch.tensor(v).double() for v in ([1.0, -2.0, 0.5], [1.0, 2.0, 0.3], [0.5, 2.5, 1.0]))
    expected = float(m.square().sum() + (s - t).square().sum())
    return abs(fid(white * s, m + white * t, lambda x: x) - expected) / expected


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The pair, its feedback, the adapted weights, and the arms that no sham changes."""
    with seeded(seed, "init"):
        start, judge = _Points(scale["width"]), _mlp(2, scale["width"], 1, nn.LeakyReLU(0.2))
    first = GANTraining(steps=scale["base"], batch_size=64, lr=1e-3, r1=0.1, ema=0.98)
    pair = first.fit(start, judge, _mixture(6000, seed), seed=seed)
    negatives, positives = collect_feedback(pair[0], _undesired, 6000, seed=seed)
    before = float(_modes(generated(pair[0], scale["samples"], seed=seed))[:UNDESIRED].sum())
    given: dict[str, Any] = {"pair": pair, "seed": seed, "before": before}
    given |= {"negatives": negatives[:300], "positives": positives[:3000]}
    stage = AdaptThenUnlearn(
        batch=64, r1=0.1, ema=0.98, lr=5e-4, ewc_weight=0.0, n_adapted=1, adapt_iters=scale["adapt"]
    )
    given["adapted"] = stage.adapt(*pair, given["negatives"], seed=seed)
    given["short"] = short = replace(stage, lr=3e-4, gamma=300.0, unlearn_iters=scale["short"])
    given["long"] = long = replace(stage, gamma=1.0, unlearn_iters=scale["long"])
    adapted = _Points(scale["width"])
    adapted.load_state_dict(given["adapted"][0])
    away = extrapolated(pair[0], given["adapted"], 0.5)
    distance = float(weight_distance({n: p.detach() for n, p in pair[0].named_parameters()}, given["adapted"]))
    given["rows"] = [
        _row("original", given, pair[0], scale),
        {**_row("adapted", given, adapted, scale), "distance": distance},
        _row("extrapolation", given, away, scale),
        _unlearned("fine-tune", replace(short, repulsion="none"), given, scale),
        _unlearned("ewc", replace(short, repulsion="ewc", ewc_weight=1e3), given, scale),
        _unlearned("fine-tune, long", replace(long, repulsion="none"), given, scale),
        _unlearned("too strong", replace(short, gamma=3000.0), given, scale),
        {"arm": "exact", **_exact(given, short, seed)},
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Stage 2 with repulsion, at both lengths, and the slope of the repulsion."""
    kind = _WrongSign if sham == "wrong-sign" else AdaptThenUnlearn
    rows = [_unlearned(arm, given[arm], given, scale, sham) for arm in ("short", "long")]
    return Table.of([*given["rows"], *rows, {"arm": "slope", "slope": _slope(kind(), seed)}])


def claims(table: Table) -> list[Claim]:
    """The undesired share after the short stage and the exact slope decide."""
    checks = (
        ("the repulsions and their slopes on two weights: largest difference from closed forms", "forms", 1e-9),
        ("gamma = 0 is fine-tuning bit for bit: largest difference of a weight", "plain", 0.0),
        ("EWC where it starts: its value and its largest slope", "flat", 0.0),
        ("the Frechet distance of Gaussian samples: relative difference from the formula", "frechet", 1e-6),
    )
    kept = table.per_seed("kept", arm="short") / table.per_seed("kept", arm="fine-tune")
    support = (
        ("what the repelled GAN keeps of the other modes, over what fine-tuning keeps", kept, 0.95),
        ("undesired samples that the long stage removes, in percent", table.per_seed("pul", arm="long"), 80.0),
        ("the share of the least of the kept modes after it", table.per_seed("least", arm="long"), 0.05),
        ("what ten times the repulsion loses of the other modes", table.gain("fine-tune", "too strong", "kept"), 0.08),
        ("share of undesired samples of the adapted GAN", table.per_seed("undesired", arm="adapted"), 0.8),
    )
    return [
        Claim(
            "share of undesired samples after the short stage, repelled less fine-tuned",
            table.gain("short", "fine-tune", "undesired"),
            at_most=0.0,
            refuted_by=("random-direction", "wrong-sign"),
        ),
        Claim(
            "near the adapted weights the repulsion's gradient is -100 gamma grad v: relative distance",
            table.per_seed("slope", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=("wrong-sign",),
        ),
        *(Claim(text, table.per_seed(c, np.max), at_most=top, rule="exact") for text, c, top in checks),
        *(Claim(text, values, at_least=least, key=False) for text, values, least in support),
    ]


def figure(table: Table) -> Figure:
    """Undesired and kept shares by arm."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = drawing.subplots()
    arms = (
        "original",
        "adapted",
        "extrapolation",
        "ewc",
        "fine-tune",
        "short",
        "too strong",
        "fine-tune, long",
        "long",
    )
    for k, column in enumerate(("undesired", "kept")):
        heights = [table.per_seed(column, arm=a).mean() for a in arms]
        axes.bar(np.arange(len(arms)) + 0.4 * k - 0.2, heights, 0.38, label=column)
    names = [{"short": "repelled", "long": "repelled, long"}.get(a, a) for a in arms]
    axes.set_xticks(range(len(arms)), names, rotation=20)
    axes.set(ylabel="share of samples", title="Two of eight modes unlearned")
    axes.legend(frameon=False)
    return drawing
