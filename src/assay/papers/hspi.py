"""Hardware and software platform inference: what a network is served on shows in its logits and in its labels.

Learned, on networks for MNIST and four number formats of each: a linear classifier of the bits of the logits of ten
images (HSPI-LD) names fp32, bf16 and fp16, also for a network that it has not seen; border inputs (HSPI-BI), made by
signed ascent, are answered differently by two formats of one network. Exact: the bits are those that NumPy unpacks,
logits computed in bf16 and fp16 end in zeros, and no border is found between a platform and itself.

Formats are simulated on a CPU; no claim is about telling GPUs apart (the paper's 84 to 100%). fp32 with int8 weights is
not told from fp32 by its bits, as the paper's own figures for int8 are low: the four-format accuracy is about 3/4.
Border inputs name the formats of their own network only: asked of another one, they do no better than chance.
Network and queries come from disjoint parts of MNIST's test images: no test error is measured. The gpu scale takes the
same formats to CIFAR-10; kernels, batch sizes and devices are tags of simulate_platform that no claim here uses.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks.engine import Climb
from assay.data import Data, load_data
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.privacy import BorderInputs, LogitFingerprint, float_bits, simulate_platform
from assay.privacy.platform import FittedBorderInputs, Platform
from assay.privacy.platform.border_inputs import BorderSearch
from assay.runtime.inference import batched, predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

FLOATS = ("fp32", "bf16", "fp16")
FORMATS = (*FLOATS, "int8-weights")
SHARES = {"bf16": 0.5, "fp16": 0.15, "int8-weights": 0.6}
BATCHES = (1, 7, 256)
PENALTY = 0.01  # of the machines: theirs is 1, which gives the same accuracy and takes up to ten times as long

PAPER = Paper(
    slug="hspi",
    title="Hardware and Software Platform Inference",
    authors="Cheng Zhang, Hanna Foerster, Robert D. Mullins, Yiren Zhao, Ilia Shumailov",
    year=2024,
    arxiv="2411.05197",
    room="privacy",
    kind="method",
    implements=(
        "privacy.BorderInputs",
        "privacy.LogitFingerprint",
        "privacy.float_bits",
        "privacy.split_float",
        "privacy.simulate_platform",
    ),
    claim="The bits of its logits, or its labels on border inputs, tell in which number format a network is served.",
    headline="83.9 to 100% between GPUs, about 100% between number formats; up to 3 times chance on unseen networks.",
    baselines=("natural",),
    peers=("sklearn.multiclass.OneVsOneClassifier",),
    shams={
        "value-features": "the classifier sees the values of the logits instead of their bits: machine and groups kept",
        "random-step": "borders are searched along the signs of a random direction, not of the gradient: steps kept",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "train": 400, "widths": (4, 8), "epochs": 10, "fit": 100, "test": 100, "images": 10}
            | {"steps": 30, "lr": (3e-2, 1e-4), "check_every": 1, "patterns": 1000},
        ),
        Scale(
            "claim",
            5,
            {"data": "mnist", "train": 4000, "widths": (8, 16), "epochs": 3, "fit": 1500, "test": 1500, "images": 24}
            | {"steps": 100, "lr": (1e-2, 1e-4), "check_every": 1, "patterns": 100_000},
        ),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "train": 4000, "widths": (32, 64), "epochs": 20, "fit": 4000, "test": 1000}
            | {"images": 64, "steps": 400, "lr": (1e-3, 1e-4), "check_every": 1, "patterns": 100_000},
        ),
    ),
)


class _Values(LogitFingerprint):
    """The values themselves in place of their bits."""

    def encode(self, logits: Float[Tensor, "n c"]) -> Tensor:
        return logits[..., None]


class _RandomStep(BorderSearch):
    """Goes along the signs of a normal direction, drawn anew at every step; the gradient is computed all the same."""

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        run.grad = run.draws.normal(*run.z.shape[1:]).to(run.z)
        return super().move(run)


class _RandomBorder(BorderInputs):
    def search(self) -> BorderSearch:
        real = super().search()
        return _RandomStep(**{f.name: getattr(real, f.name) for f in fields(real)})


@cache
def _images(source: str) -> Data:
    return load_data(source, "test")


@dataclass(frozen=True)
class _Given:
    """Two networks as each format runs them, the images for their logits and for border inputs, and the settings."""

    scale: Scale
    seed: int
    platforms: tuple[Mapping[str, Platform], Mapping[str, Platform]]
    queries: Tensor
    starts: Tensor

    @cached_property
    def logits(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of both networks by format, (fit + test, 10)."""
        first, second = ({n: predict(p, self.queries) for n, p in ps.items()} for ps in self.platforms)
        return first, second

    def part(self, network: int, names: tuple[str, ...], test: bool) -> dict[str, Tensor]:
        """The logits of the images to fit on, or of the others."""
        rows = slice(self.scale["fit"], None) if test else slice(self.scale["fit"])
        return {name: self.logits[network][name][rows] for name in names}

    @cached_property
    def fingerprint(self) -> list[dict[str, Any]]:
        return _fingerprint(self, LogitFingerprint(C=PENALTY))

    @cached_property
    def border(self) -> list[dict[str, Any]]:
        return _border(self, BorderInputs)

    @cached_property
    def exact(self) -> dict[str, Any]:
        return _exact(self)

    @cached_property
    def controls(self) -> dict[str, Any]:
        return _controls(self)


def _network(scale: Scale, data: Data, seed: int) -> nn.Module:
    shape = (data.shape[0], data.shape[1], data.shape[2])
    with seeded(seed, "init"):
        start = SmallCNN(shape, len(data.classes), scale["widths"], 32)
    return Supervised(epochs=scale["epochs"]).fit(start, data, seed=seed)


def setup(scale: Scale, seed: int) -> _Given:
    """Two networks of the same training images, and images that neither has seen."""
    data = _images(scale["data"])
    data = data[torch.randperm(len(data), generator=torch_rng(seed, "parts"))]
    sizes = (scale["train"], scale["fit"] + scale["test"], scale["images"])
    train, queries, starts = (data[a - k : a] for a, k in zip(np.cumsum(sizes), sizes, strict=True))
    networks = [_network(scale, train, derive(seed, "network", k)) for k in range(2)]
    first, second = ({tag: simulate_platform(m, tag) for tag in FORMATS} for m in networks)
    return _Given(scale, seed, (first, second), queries.x, starts.x)


def bits(patterns: int, seed: int) -> int:
    """Bits that differ from those that NumPy unpacks of the same numbers in network order; any pattern is drawn."""
    words = numpy_rng(seed, "patterns").integers(-(2**31), 2**31, size=(patterns, 1), dtype=np.int64).astype(np.int32)
    expected = np.unpackbits(words.astype(">i4").view(np.uint8), axis=1)[:, None]
    return int((float_bits(torch.from_numpy(words).view(torch.float32)).numpy() != expected).sum())


def trailing(logits: Mapping[str, Tensor]) -> int:
    """Ones among the last 16 bits of logits computed in bf16, and the last 13 of those in fp16 from 2^-14 upwards."""
    normal = logits["fp16"][logits["fp16"].abs() >= 2.0**-14]
    return int(float_bits(logits["bf16"])[..., -16:].sum()) + int(float_bits(normal)[..., -13:].sum())


def _search(given: _Given, cls: type[BorderInputs], models: Mapping[str, nn.Module]) -> FittedBorderInputs:
    method = cls(steps=given.scale["steps"], lr=given.scale["lr"], check_every=given.scale["check_every"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a pair without border inputs is part of what is measured
        return method.fit(models, given.starts, seed=given.seed)


def _exact(given: _Given) -> dict[str, Any]:
    """What must be so; border inputs are searched between fp32 and a copy of it."""
    same = given.platforms[0]["fp32"]
    return {
        "arm": "exact",
        "wrong bits": bits(given.scale["patterns"], given.seed),
        "trailing ones": sum(trailing(logits) for logits in given.logits),
        "found in itself": len(_search(given, BorderInputs, {"fp32": same, "copy": same}).images_),
    }


def _fingerprint(given: _Given, method: LogitFingerprint) -> list[dict[str, Any]]:
    """Accuracy on other images of the same network and of the other one, and the confusion of four formats."""
    three, four = (method.fit(given.part(0, names, False), seed=given.seed) for names in (FLOATS, FORMATS))
    row: dict[str, Any] = {"arm": "fingerprint"}
    for network, where in enumerate(("same network", "other network")):
        row[f"three, {where}"] = three.score(given.part(network, FLOATS, True))
        row[f"four, {where}"] = four.score(given.part(network, FORMATS, True))
    tests = given.part(0, FORMATS, True)
    row["F1 of int8-weights"] = four.f1(tests)["int8-weights"]
    counts = four.confusion(tests)
    cells = product(enumerate(FORMATS), repeat=2)
    return [
        row,
        *({"arm": "confusion", "truth": a, "taken for": b, "groups": counts[i, j]} for (i, a), (j, b) in cells),
    ]


def _border(given: _Given, cls: type[BorderInputs]) -> list[dict[str, Any]]:
    """The share of images that lead to a border input of fp32 and each format, and whether services are named by them.

    A service is one of three formats of a network, asked in batches of several sizes; the other network's formats are
    asked the border inputs of the first.
    """
    platforms, second = given.platforms
    floats = _search(given, cls, {name: platforms[name] for name in FLOATS})
    integer = _search(given, cls, {name: platforms[name] for name in ("fp32", "int8-weights")})
    rows: list[dict[str, Any]] = []
    for name in SHARES:
        share, natural = (integer if name == "int8-weights" else floats).share("fp32", name), _natural(given, name)
        least = 50 * max(natural, 1 / len(given.queries))
        rows.append({"arm": "border", "format": name, "share": share, "over 50 x natural": share - least})
    for where, services in (("same network", platforms), ("other network", second)):
        named = [floats.name(_Service(services[n], size)) == n for n, size in product(FLOATS, BATCHES)]
        rows.append({"arm": "border", "named": np.mean(named), "asked": where})
    return rows


@dataclass(frozen=True)
class _Service:
    """Answers with labels only, computed in batches of ``size``."""

    platform: Platform
    size: int

    def __call__(self, x: Tensor) -> Tensor:
        return batched(lambda part: self.platform(part).argmax(1), x, batch_size=self.size)


def _natural(given: _Given, name: str) -> float:
    """How often fp32 and a format differ on images as they come."""
    logits = given.logits[0]
    return float((logits["fp32"].argmax(1) != logits[name].argmax(1)).float().mean())


def _controls(given: _Given) -> dict[str, Any]:
    """The classifier where formats carry nothing: groups dealt out to them at random; two copies of fp32."""
    method = LogitFingerprint(C=PENALTY)
    dealt = [_dealt(given.part(0, FORMATS, test), method.group, given.seed) for test in (False, True)]
    copies = [{n: given.part(0, FLOATS, test)["fp32"] for n in ("fp32", "copy")} for test in (False, True)]
    return {
        "arm": "controls",
        "dealt": method.fit(dealt[0], seed=given.seed).score(dealt[1]),
        "copies": method.fit(copies[0], seed=given.seed).score(copies[1]),
    }


def _dealt(logits: Mapping[str, Tensor], group: int, seed: int) -> dict[str, Tensor]:
    """The groups of all formats, whole as they are, dealt out to the names at random."""
    groups = torch.cat([value.unflatten(0, (-1, group)) for value in logits.values()])
    order = torch.randperm(len(groups), generator=torch_rng(seed, "dealt", len(groups)))
    return dict(zip(logits, groups[order].flatten(0, 1).chunk(len(logits)), strict=True))


def experiment(scale: Scale, seed: int, given: _Given, sham: str | None) -> Table:
    """Both methods, what must be exact, and the controls; a sham changes one of the methods."""
    fingerprint = _fingerprint(given, _Values(C=PENALTY)) if sham == "value-features" else given.fingerprint
    border = _border(given, _RandomBorder) if sham == "random-step" else given.border
    natural = [{"arm": "natural", "format": name, "share": _natural(given, name)} for name in SHARES]
    return Table.of([given.exact, given.controls, *fingerprint, *border, *natural])


def claims(table: Table) -> list[Claim]:
    """The accuracy of three formats, the shares of border inputs and the exact checks decide; the rest supports."""
    return [
        *_exact_claims(table),
        *(
            Claim(
                f"HSPI-LD: accuracy over fp32, bf16 and fp16 on other images of the {where}",
                table.per_seed(f"three, {where}"),
                at_least=least,
                refuted_by=("value-features",),
            )
            for where, least in (("same network", 0.98), ("other network", 0.95))
        ),
        *(
            Claim(
                f"HSPI-BI: share of images that lead to a border input of fp32 and {name}",
                table.per_seed("share", arm="border", format=name),
                at_least=least,
                refuted_by=("random-step",),
            )
            for name, least in SHARES.items()
        ),
        *_support(table),
    ]


def _exact_claims(table: Table) -> list[Claim]:
    texts = {
        "wrong bits": "float_bits: bits other than NumPy unpacks, over random patterns",
        "trailing ones": "logits: ones in the last 16 bits under bf16, the last 13 of normal numbers under fp16",
        "found in itself": "HSPI-BI: border inputs between fp32 and itself",
    }
    return [Claim(text, table.per_seed(cell, np.max), at_most=0, rule="exact") for cell, text in texts.items()]


def _support(table: Table) -> list[Claim]:
    """Four formats, identification by labels, the natural rate, and the controls."""
    return [
        Claim(
            "HSPI-LD: accuracy over four formats, int8 weights among them, on the same network",
            table.per_seed("four, same network"),
            at_least=0.7,
            key=False,
        ),
        Claim(
            "HSPI-BI: share of services of the same network in fp32, bf16 and fp16 that are named rightly",
            table.per_seed("named", asked="same network"),
            at_least=0.95,
            key=False,
        ),
        Claim(
            "HSPI-BI: share of border inputs less 50 times the rate of natural disagreement, mean over formats",
            table.per_seed("over 50 x natural", np.mean),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "control: accuracy where groups are dealt out to four names at random",
            table.per_seed("dealt"),
            at_least=0.2,
            at_most=0.3,
            key=False,
        ),
        Claim(
            "control: accuracy over two copies of fp32",
            table.per_seed("copies"),
            at_least=0.5,
            at_most=0.5,
            rule="exact",
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """What groups of logits are taken for, and how many images lead to a border input, by format."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    counts = np.array([[table.values("groups", truth=a, **{"taken for": b}).sum() for b in FORMATS] for a in FORMATS])
    shares = counts / counts.sum(1, keepdims=True)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in product(range(len(FORMATS)), repeat=2):
        left.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", color="w" if shares[i, j] > 0.6 else "k")
    left.set_xticks(range(len(FORMATS)), FORMATS)
    left.set_yticks(range(len(FORMATS)), FORMATS)
    left.set(xlabel="taken for", ylabel="served in", title="Bits of ten images' logits")
    for shift, arm, label in ((-0.2, "border", "border inputs found"), (0.2, "natural", "images as they come")):
        values = np.stack([table.per_seed("share", arm=arm, format=name) for name in SHARES])
        right.bar(np.arange(len(SHARES)) + shift, values.mean(1), 0.4, label=label)
    right.plot(np.arange(len(SHARES)) - 0.2, list(SHARES.values()), "k_", ms=24, label="bound")
    right.set_xticks(range(len(SHARES)), SHARES)
    right.set(ylabel="share of images", title="Labels that differ from fp32's")
    right.legend(frameon=False, fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return drawing
