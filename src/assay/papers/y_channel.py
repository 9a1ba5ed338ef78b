"""Perturbations of color images prevail in luminance: the share of Y in their squared length beside that of noise.

The share depends on the scale of the channels: noise of equal variance in R, G and B has .353 in Y, .306 in Cb and
.341 in Cr. So what counts is the gain over that baseline, of FGSM, PGD (l-infinity) and PGD (l2). It is decided for a
network of two linear layers with weight decay on a part of CIFAR-10, where seeds differ little. Convolutional ones
differ much: in pilots two layers of 32 and 64 filters gained .06 after 84,000 images, and next to nothing when half
as wide or after 48,000; one layer of 64 filters gained .07 to .08 on average, with far more spread. Exact: the
color map and its inverse, the shares of random signs, and the gain of the luminance attack on a plane by its closed
form.

Support: what is left of PGD's fooling when only its Y part or only its CbCr part is kept, and PGD in Y alone beside
PGD in RGB, which contains it. These claims state the paper's direction, which is that of networks for ImageNet; the
pilots on small ones showed the other direction or none. At gpu scale a larger network, of convolutions, is trained;
networks for ImageNet are not run here, nor is ResUpNet, the paper's purifier. The images of CIFAR-10 come as JPEG
files, whose chrominance is coded coarser.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import (
    FGSM,
    L2,
    PGD,
    Linf,
    YChannelAttack,
    fooling_rate,
    keep_channels,
    perturbation_energy_by_channel,
)
from assay.data import Data, load_data, rgb_to_ycbcr, ycbcr_to_rgb
from assay.data.outsets import photo_patches
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.training import Supervised

EPS = 8 / 255
NOISE = {"Y": 0.4473, "Cb": 0.3885, "Cr": 0.4323}  # squared norms of the rows of the JFIF color matrix
BASELINE = {name: energy / sum(NOISE.values()) for name, energy in NOISE.items()}
STEEPEST = {"fgsm": "FGSM", "pgd": "PGD", "l2": "PGD in l2"}
CHROMA = ("Cb", "Cr")
NETS = {  # convolutions, the width of the layer after them, and the training
    "smoke": {"widths": (), "hidden": 16, "epochs": 3, "lr": 1e-3, "decay": 1.0},
    "claim": {"widths": (), "hidden": 64, "epochs": 8, "lr": 1e-3, "decay": 1.0},
    "gpu": {"widths": (64, 128), "hidden": 256, "epochs": 20, "lr": 1e-3, "decay": 0.05},
}

PAPER = Paper(
    slug="y-channel",
    title="Adversarial Perturbations Prevail in the Y-Channel of the YCbCr Color Space",
    authors="Camilo Pestana, Naveed Akhtar, Wei Liu, David Glance, Ajmal Mian",
    year=2020,
    arxiv="2003.00883",
    room="attacks",
    also=("defenses", "vision"),
    kind="measure + method",
    implements=(
        "attacks.YChannelAttack",
        "attacks.perturbation_energy_by_channel",
        "attacks.perturbation_size_by_channel",
        "attacks.white_noise_energy",
        "attacks.keep_channels",
        "data.rgb_to_ycbcr",
        "data.ycbcr_to_rgb",
    ),
    claim="Perturbations of networks for color images put more of their energy into luminance than white noise does.",
    headline="ImageNet: FGSM, PGD and DDN concentrate in Y on several networks; a purifier of Y alone suffices.",
    peers=("PIL.Image.convert", "kornia.color.rgb_to_ycbcr"),
    baselines=("noise",),
    shams={
        "unaligned-channels": "the R, G and B planes of the perturbation are permuted in space, each by its own "
        "permutation: energies by plane and images stay",
        "offset-on-delta": "the perturbation is mapped with the offset of Cb and Cr that belongs to images",
    },
    scales=(
        Scale("smoke", 1, {**NETS["smoke"], "data": "digits:train", "train": 600, "images": 60}),
        Scale("claim", 8, {**NETS["claim"], "data": "cifar10:test", "train": 8800, "images": 200}),
        Scale("gpu", 5, {**NETS["gpu"], "data": "cifar10:train", "train": 45_000, "images": 1000}),
    ),
)


@cache
def _images(source: str) -> Data:
    """Color images, to be divided: the named source, or digits laid over patches of photographs."""
    data = load_data(source)
    if data.shape[0] == 3:
        return data
    color = data.with_x(data.x.expand(-1, 3, -1, -1))
    return data.with_x((color.x + photo_patches(color, len(color))) / 2)


def _network(data: Data, scale: Scale) -> nn.Module:
    channels, height, width = data.shape
    if not scale["widths"]:
        return MLP(data.shape, len(data.classes), (scale["hidden"],))
    return SmallCNN((channels, height, width), len(data.classes), scale["widths"], scale["hidden"])


def _attacked(scale: Scale, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, and images outside its training data that it classifies correctly, with their labels."""
    data = _images(scale["data"]).limit(scale["train"] + 4 * scale["images"], seed=seed)
    train, rest = data[: scale["train"]], data[scale["train"] :]
    with seeded(seed, "init"):
        start = _network(train, scale)
    trainer = Supervised(epochs=scale["epochs"], lr=scale["lr"], optimizer="adamw", weight_decay=scale["decay"])
    model = trainer.fit(start, train, seed=seed)
    right = rest[predict(model, rest.x).argmax(1) == rest.y].limit(scale["images"])
    return model, right.x, right.y


def _rate(model: nn.Module, x: Tensor, x_adv: Tensor) -> float:
    return fooling_rate(model, x, lambda _: x_adv)


def _fooling(model: nn.Module, x: Tensor, y: Tensor, pgd: Tensor, seed: int) -> list[dict[str, Any]]:
    """What parts of PGD's perturbation fool, and PGD in some channels, with the same eps in their coordinates."""
    parts = {"kept Y": ("Y",), "kept CbCr": CHROMA}
    found = {name: keep_channels(x, pgd, channels) for name, channels in parts.items()}
    for name, channels in (("PGD in Y", ("Y",)), ("PGD in CbCr", CHROMA)):
        found[name] = YChannelAttack(base=_pgd(), channels=channels)(model, x, y, seed=seed)
    return [{"arm": name, "fooled": _rate(model, x, z)} for name, z in found.items()]


def _pgd() -> PGD:
    return PGD(ball=Linf(EPS), steps=10, early_stop=False)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Images with their perturbations by attack, random signs, and what each fools: no sham changes them."""
    model, x, y = _attacked(scale, derive(seed, "network"))
    attacks = {
        "fgsm": FGSM(ball=Linf(EPS), early_stop=False),
        "pgd": _pgd(),
        "l2": PGD(ball=L2(0.5), steps=10, early_stop=False),
    }
    moved = {name: attack(model, x, y, seed=seed) for name, attack in attacks.items()}
    signs = 2.0 * torch.randint(2, (256, 3, 32, 32), generator=torch_rng(seed, "signs")) - 1
    return {
        "perturbed": {name: (x, x_adv) for name, x_adv in moved.items()},
        "signs": (torch.full_like(signs, 0.5), 0.5 + EPS * signs),
        "fooled": {name: _rate(model, x, z) for name, z in moved.items()},
        "support": _fooling(model, x, y, moved["pgd"], seed),
        "exact": {"round": _round_trip(seed), "plane": _plane(seed)},
    }


def _round_trip(seed: int) -> float:
    """Largest difference of colors from what comes back from YCbCr."""
    x = torch.rand(16, 3, 16, 16, generator=torch_rng(seed, "colors"))
    return float((ycbcr_to_rgb(rgb_to_ycbcr(x)) - x).abs().max())


class _Plane(nn.Module):
    """Two classes with the gap weight . x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        gap = x.flatten(1) @ self.weight.flatten()
        return torch.stack((torch.zeros_like(gap), gap), 1)


def _plane(seed: int) -> float:
    """How far, relatively, the gap that FGSM in Y gains on a plane is from eps times sum over pixels |wR + wG + wB|."""
    g = torch_rng(seed, "plane")
    weight = torch.randn(3, 8, 8, generator=g, dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(8, 3, 8, 8, generator=g, dtype=torch.float64)
    attack = YChannelAttack(base=FGSM(ball=Linf(EPS), early_stop=False))
    x_adv = attack(_Plane(weight), x, torch.zeros(8, dtype=torch.int64), seed=seed)
    best = EPS * weight.sum(0).abs().sum()
    return float((((x_adv - x) * weight).sum((1, 2, 3)) / best - 1).abs().max())


def shares(x: Tensor, x_adv: Tensor, sham: str | None, seed: int) -> dict[str, float]:
    """The shares of Y, Cb and Cr in the perturbation, as the method measures them or as a sham does."""
    delta = x_adv - x
    if sham == "offset-on-delta":
        energy = rgb_to_ycbcr(delta, centered=False).double().square().sum((0, 2, 3))
        return dict(zip(BASELINE, (energy / energy.sum()).tolist(), strict=True))
    if sham == "unaligned-channels":
        g = torch_rng(seed, "planes")
        planes = [p.flatten(1)[:, torch.randperm(p[0].numel(), generator=g)].view_as(p) for p in delta.unbind(1)]
        x_adv = x + torch.stack(planes, 1)
    return perturbation_energy_by_channel(x, x_adv)


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Shares by channel of each attack and of random signs; the exact checks and what fools, which need no share."""
    rows: list[dict[str, Any]] = []
    for arm, (x, x_adv) in given["perturbed"].items():
        found = shares(x, x_adv, sham, seed)
        rows.append({"arm": arm, **found, "gain": found["Y"] - BASELINE["Y"], "fooled": given["fooled"][arm]})
    grey, noisy = given["signs"]
    rows.append({"arm": "noise", **perturbation_energy_by_channel(grey, noisy)})
    signs = shares(grey, noisy, sham, seed)
    rows.append({"arm": "signs", "difference": max(abs(signs[c] - BASELINE[c]) for c in BASELINE)})
    rows += [{"arm": name, "exact": value} for name, value in given["exact"].items()]
    return Table.of([*rows, *given["support"]])


def _fooled(table: Table, arm: str, reference: str) -> np.ndarray:
    return table.gain(arm, reference, "fooled")


def claims(table: Table) -> list[Claim]:
    """The gains over noise and the exact checks decide; what fools supports, in the direction of the paper."""
    return [
        *(
            Claim(
                f"{name}: share of Y over that of white noise, .353",
                table.per_seed("gain", arm=arm),
                at_least=0.03,
                refuted_by=("unaligned-channels", "offset-on-delta"),
            )
            for arm, name in STEEPEST.items()
        ),
        Claim(
            "random signs have the shares .353, .306 and .341 of the color matrix: largest difference",
            table.per_seed("difference", arm="signs"),
            at_most=0.005,
            rule="exact",
            refuted_by=("offset-on-delta",),
        ),
        Claim(
            "from RGB to YCbCr and back: largest difference",
            table.per_seed("exact", arm="round"),
            at_most=1e-5,
            rule="exact",
        ),
        Claim(
            "on a plane FGSM in Y gains eps times the sum over pixels of |wR + wG + wB|: relative difference",
            table.per_seed("exact", arm="plane"),
            at_most=1e-9,
            rule="exact",
        ),
        Claim(
            "PGD: what its Y part alone fools over what its CbCr part alone fools",
            _fooled(table, "kept Y", "kept CbCr"),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "PGD in Y alone fools more than PGD in RGB with the same eps",
            _fooled(table, "PGD in Y", "pgd"),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "PGD in Y alone fools more than PGD in CbCr with the same eps in these coordinates",
            _fooled(table, "PGD in Y", "PGD in CbCr"),
            at_least=0.0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Shares by channel beside those of noise, and what parts of the perturbation and attacks in parts fool."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    arms = {**STEEPEST, "noise": "random signs"}
    for k, channel in enumerate(BASELINE):
        heights = [table.per_seed(channel, arm=arm).mean() for arm in arms]
        left.bar(np.arange(len(arms)) + 0.27 * (k - 1), heights, 0.25, label=channel)
    left.axhline(BASELINE["Y"], color="0.5", lw=0.8, ls="--")
    left.set_xticks(range(len(arms)), list(arms.values()))
    left.set(title="share of the perturbation's energy", ylabel="share")
    left.legend(frameon=False)
    names = {"pgd": "PGD", "kept Y": "its Y\npart", "kept CbCr": "its CbCr\npart"}
    names |= {"PGD in Y": "PGD\nin Y", "PGD in CbCr": "PGD\nin CbCr"}
    right.bar(range(len(names)), [table.per_seed("fooled", arm=arm).mean() for arm in names])
    right.set_xticks(range(len(names)), list(names.values()))
    right.set(title="share of images fooled, eps = 8/255", ylim=(0, 1))
    return drawing
