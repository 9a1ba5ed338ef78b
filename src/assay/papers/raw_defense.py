"""Images taken back to a camera's RAW and shown again lose what an attack put into them; the model stays as it is.

F guesses the capture of an image, noise or not, and G and a plain pipeline S show it: .7 G(F(x)) + .3 S(F(x)). F and G
learn from natural images alone, none of which the model was trained on. There are no pairs of a real camera here: a
simulated one (Brooks et al., 2019) captures images of CIFAR-10, averaged to 16 x 16 pixels so that five convolutions
are trained in seconds. Decided: on images held out F is nearer to the capture of the clean image than the capture of
the noisy one is; and what accuracy is won back under PGD with 20 steps that knows the model and not the purifier. The
attack takes all its steps: one that stops at the first error leaves images on the boundary, where any blur undoes it.
Exact: colours through mosaics, the camera there and back, the size of F, the weights 1 and 0.

Support: the loss of clean accuracy, and filters whose strength is chosen on other images, the best under attack of
those that cost at most six points. Only printed: G alone, S alone, and networks of the same size that go through the
image and its mean in the place of RAW. An attack through the purifier (the last arm) shows that what is won holds
only while it is not known.

The size of the training decides how near F comes. In pilots of one seed with 16 maps and 3 passes its error was .7 to
1.0 of that of the noisy capture, half of it error on clean images; with 32 maps and a warm-up it is .48 to .49 after 12
passes and .44 after 16, against a bound of .5. Radii: at 8/255 an F that near wins 11 points, at 4/255, on a model of
53% in the place of 37%, 16; the worse F of the first pilots won 18 at 8/255, by its blur. JPEG wins 25 points there, so
the filters are expected to be ahead. ImageNet, the Zurich pairs, detection and segmentation are not run here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import FGSM, PGD, Linf
from assay.data import Batch, Data, load_data
from assay.data.isp import Pattern, SimpleISP, UnprocessISP, demosaic_bilinear, demosaic_malvar, mosaic
from assay.defenses import (
    BitDepth,
    Blur,
    Jpeg,
    Median,
    Purified,
    Purifier,
    RawDefense,
    RawDefenseMap,
    RGBToRawNet,
    image_noise,
)
from assay.nets import ResNet
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import batched, predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.training import State, Supervised

FILTERS: dict[str, tuple[Purifier, ...]] = {
    "jpeg": tuple(Jpeg(quality=q) for q in (90, 75, 50, 30, 15)),
    "median": (Median(size=2), Median(size=3)),
    "bits": tuple(BitDepth(bits=b) for b in (5, 4, 3, 2)),
    "blur": tuple(Blur(sigma=s) for s in (0.4, 0.5, 0.7, 1.0)),
}
DROP = 0.06  # of clean accuracy, that a purifier may cost

PAPER = Paper(
    slug="raw-defense",
    title="All You Need is RAW: Defending Against Adversarial Attacks with Camera Image Pipelines",
    authors="Yuxuan Zhang, Bo Dong, Felix Heide",
    year=2022,
    arxiv="2112.09219",
    room="defenses",
    also=("vision",),
    kind="method",
    implements=(
        "defenses.RawDefense",
        "defenses.RGBToRawNet",
        "defenses.LearnedISP",
        "vision.UnprocessISP",
        "vision.SimpleISP",
        "vision.mosaic",
        "vision.demosaic_bilinear",
        "vision.demosaic_malvar",
    ),
    claim="Mapped to RAW and back by networks that know natural images alone, attacked images are classified better.",
    headline="ImageNet: accuracy under FGSM, PGD and BIM won back at a small clean cost, ahead of other purifiers.",
    peers=("princeton-computational-imaging/allyouneedisraw", "colour-demosaicing"),
    baselines=("undefended", "jpeg", "median", "bits", "blur", "same size in RGB"),
    shams={
        "clean-only-F": "F minimises |F(y) - r|^2 twice in the place of |F(y) - r|^2 + |F(y + n) - r|^2",
        "swapped-phase": "demosaicing reads the RGGB mosaic as BGGR",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "pool": 1, "train": 300, "pairs": 200, "images": 60, "epochs": 4,
                           "eps": 0.1, "steps": 5, "net": 4, "width": 8, "isp_width": 6, "passes": 2}),
        Scale("claim", 5, {"data": "cifar10:test", "pool": 2, "train": 6400, "pairs": 2500, "images": 400,
                           "epochs": 14, "eps": 4 / 255, "steps": 20, "net": 12, "width": 32,
                           "isp_width": 12, "passes": 12}),
        Scale("gpu", 5, {"data": "cifar10:train", "pool": 1, "train": 25_000, "pairs": 20_000, "images": 2000,
                         "epochs": 20, "eps": 4 / 255, "steps": 20, "net": 32, "width": 64,
                         "isp_width": 24, "passes": 20}),
    ),
)  # fmt: skip


class _CleanOnly(RawDefense):
    def shown(self, batch: Batch, state: State) -> Tensor:
        return batch.x


@cache
def _images(source: str, pool: int) -> Data:
    """The images of a source, ``pool`` x ``pool`` pixels averaged to one."""
    data = load_data(source)
    return data.with_x(F.avg_pool2d(data.x, pool))


def _options(scale: Scale) -> dict[str, Any]:
    return {"width": scale["width"], "isp_width": scale["isp_width"], "epochs": scale["passes"],
            "batch_size": 8, "lr": 4e-3}  # fmt: skip


def _attacked(model: nn.Module, data: Data, scale: Scale, seed: int) -> dict[str, Tensor]:
    """The images by what was done to them."""
    ball, bounds = Linf(scale["eps"]), data.bounds
    fgsm = FGSM(ball=ball, bounds=bounds, early_stop=False)
    pgd = PGD(ball=ball, bounds=bounds, steps=scale["steps"], early_stop=False)
    attacks = {"fgsm": fgsm, "pgd": pgd}
    return {"clean": data.x, **{n: a(model, data.x, data.y, seed=seed) for n, a in attacks.items()}}


def _accuracy(model: nn.Module, shown: dict[str, Tensor], y: Tensor) -> dict[str, float]:
    return {name: float((predict(model, x).argmax(1) == y).float().mean()) for name, x in shown.items()}


def _filters(model: nn.Module, images: dict[str, tuple[Data, dict[str, Tensor]]]) -> list[dict[str, Any]]:
    """A row for each kind of filter at its best strength: the best under PGD on the validation images among those that
    cost at most DROP there, or the cheapest where none does. ``validation`` is its accuracy under PGD there."""
    rows = []
    data, shown = images["validation"]
    plain = _accuracy(model, shown, data.y)["clean"]
    for arm, strengths in FILTERS.items():
        guarded = [Purified(f.fit(data, seed=0), model).eval() for f in strengths]
        found = [_accuracy(g, shown, data.y) for g in guarded]
        best = max(range(len(found)), key=lambda k: _merit(found[k], plain))
        test, hit = images["test"]
        accuracy = _accuracy(guarded[best], hit, test.y)
        rows.append({"arm": arm, "strength": repr(strengths[best]), **accuracy, "validation": found[best]["pgd"]})
    return rows


def _merit(found: dict[str, float], plain: float) -> tuple[float, float]:
    spare = min(found["clean"] - plain + DROP, 0.0)
    return spare, found["pgd"]


def _in_rgb(scale: Scale, pairs: Data, seed: int) -> RawDefenseMap:
    """F and G of the same size and training, through the image and its mean in the place of RAW."""
    own = torch.cat((pairs.x, pairs.x.mean(1, keepdim=True)), 1)
    data = Data(pairs.x, pairs.y, pairs.classes, index=pairs.index, fields={"raw": own})
    found = RawDefense(**_options(scale), weight=1.0).fit(data, seed=seed)
    assert isinstance(found, RawDefenseMap)
    return found


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The model, the attacked images, the fitted purifier, and the arms that no sham changes."""
    count = scale["train"] + scale["pairs"] + 2 * scale["images"]
    data = _images(scale["data"], scale["pool"]).limit(count, seed=seed)
    order = torch.randperm(len(data), generator=torch_rng(seed, "parts"))
    train, natural, validation, test = (data[p] for p in order.split(
        [scale["train"], scale["pairs"], scale["images"], len(data) - count + scale["images"]]))  # fmt: skip
    with seeded(seed, "init"):
        start = ResNet((train.shape[0], train.shape[1], train.shape[2]), len(train.classes), scale["net"], (1, 1))
    model = Supervised(epochs=scale["epochs"]).fit(start, train, seed=derive(seed, "model"))
    parts = {"validation": validation, "test": test}
    images = {n: (p, _attacked(model, p, scale, derive(seed, n))) for n, p in parts.items()}
    method = RawDefense(**_options(scale))
    pairs = method.pairs(natural)
    purify = method.fit(natural, seed=seed)
    same = Purified(_in_rgb(scale, pairs, seed), model).eval()
    hit = images["test"][1]
    rows = [
        {"arm": "undefended", **_accuracy(model, hit, test.y)},
        *_filters(model, images),
        {"arm": "same size in RGB", **_accuracy(same, hit, test.y)},
        {"arm": "there and back", "exact": _there_and_back(seed)},
        {"arm": "size of F", "exact": _size_of_f()},
    ]
    return {"model": model, "test": test, "hit": hit, "pairs": pairs, "purify": purify, "rows": rows}


def _there_and_back(seed: int) -> float:
    """Largest difference of images, highlights aside, from what the camera makes of their unprocessed form."""
    rgb, isp = 0.9 * torch.rand(20, 3, 8, 8, generator=torch_rng(seed, "camera"), dtype=torch.float64), UnprocessISP()
    return float((isp.process(isp.unprocess(rgb)[0]) - rgb).abs().max())


def _size_of_f() -> float:
    """The number of parameters beyond five convolutions of 64 maps and their biases, counted by hand."""
    by_hand = 3 * 64 * 9 + 64 + 3 * (64 * 64 * 9 + 64) + 64 * 4 * 9 + 4
    with seeded(0, "size"):
        net = RGBToRawNet()
    return float(sum(p.numel() for p in net.parameters()) - by_hand)


def _demosaiced(pattern: Pattern, seed: int) -> float:
    """Largest error, inside, of both ways to demosaic ``pattern`` on RGGB mosaics of constant colours and of ramps."""
    drawn = torch.rand(2, 8, 3, 1, 1, generator=torch_rng(seed, "colours"), dtype=torch.float64)
    i = torch.linspace(0, 1, 12, dtype=torch.float64)
    ramps = drawn[0] * i[:, None] + drawn[1] * i
    images = torch.cat((drawn[0].expand(-1, -1, 12, 12), ramps))
    raw = mosaic(images)
    errors = [(d(raw, pattern) - images)[..., 2:-2, 2:-2].abs().max() for d in (demosaic_bilinear, demosaic_malvar)]
    return float(max(errors))


def _branches(purify: RawDefenseMap, x: Tensor) -> float:
    """Largest difference of the map at weights 1 and 0 from G and S alone, and of .7 from their sum."""
    with torch.no_grad():
        raw = purify.to_raw(x)
        learned, plain = purify.to_rgb(raw), purify.isp(raw)
        wanted = {1.0: learned, 0.0: plain, 0.7: 0.7 * learned + 0.3 * plain}
        found = {w: RawDefenseMap(purify.to_raw, purify.to_rgb, purify.isp, w)(x) for w in wanted}
    return max(float((found[w] - wanted[w]).abs().max()) for w in wanted)


def _mechanism(to_raw: RGBToRawNet, test: Data, seed: int) -> dict[str, float]:
    """On images that are not trained on, relative to |c(y + n) - c(y)|^2 with c the camera's capture: ``ratio``
    |F(y + n) - c(y)|^2, and ``passed`` |F(y + n) - F(y)|^2, what F lets through of the noise."""
    pairs, camera = RawDefense().pairs(test), UnprocessISP()
    noisy = pairs.x + image_noise(Draws(seed, "held out", pairs.index), tuple(pairs.x.shape[1:]))
    raw = pairs.fields["raw"]
    guessed, calm, taken = batched(to_raw, noisy), batched(to_raw, pairs.x), camera.capture(noisy.clamp(0, 1))
    unit = (taken - raw).square().mean()
    errors = {"ratio": guessed - raw, "passed": guessed - calm, "calm": calm - raw}
    return {name: float(e.square().mean() / unit) for name, e in errors.items()}


def _purifier(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> RawDefenseMap:
    """The fitted purifier, or what a sham makes of it: another F, or another pattern for S."""
    real: RawDefenseMap = given["purify"]
    to_raw, isp = real.to_raw, real.isp
    if sham == "clean-only-F":
        to_raw = _CleanOnly(**_options(scale)).learn_to_raw(given["pairs"], seed=seed)
    if sham == "swapped-phase":
        isp = SimpleISP(pattern="bggr")
    return RawDefenseMap(to_raw, real.to_rgb, isp, real.weight).eval()


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Accuracies by arm, clean and attacked; the error of F; the exact checks; an attack through the purifier."""
    model, test, hit = given["model"], given["test"], given["hit"]
    purify = _purifier(scale, seed, given, sham)
    rows = list(given["rows"])
    for arm, weight in (("raw", purify.weight), ("G alone", 1.0), ("S alone", 0.0)):
        mixed = RawDefenseMap(purify.to_raw, purify.to_rgb, purify.isp, weight).eval()
        rows.append({"arm": arm, **_accuracy(Purified(mixed, model), hit, test.y)})
    few = test[: len(test) // 4]
    guarded = Purified(purify, model).eval()
    through = _accuracy(guarded, {"pgd": _attacked(guarded, few, scale, derive(seed, "through"))["pgd"]}, few.y)
    grey = _accuracy(guarded, {"grey": hit["pgd"][: len(few)]}, few.y)
    rows.append({"arm": "through the purifier", **through, **grey})
    rows.append({"arm": "mechanism", **_mechanism(purify.to_raw, test, seed)})
    phase: Pattern = "bggr" if sham == "swapped-phase" else "rggb"
    rows.append({"arm": "demosaicing", "exact": _demosaiced(phase, seed)})
    rows.append({"arm": "branches", "exact": _branches(purify, RawDefense().pairs(few).x)})
    return Table.of(rows)


def _best_filter(table: Table) -> np.ndarray:
    """Accuracy (seeds,) under PGD of the filter that is best on the validation images."""
    chosen = np.stack([table.per_seed("validation", arm=arm) for arm in FILTERS]).argmax(0)
    found = np.stack([table.per_seed("pgd", arm=arm) for arm in FILTERS])
    return found[chosen, np.arange(found.shape[1])]


def _exact_claims(table: Table) -> list[Claim]:
    return [
        Claim(
            "both ways to demosaic are exact on constant colours, and on ramps inside: largest error",
            table.per_seed("exact", arm="demosaicing"),
            at_most=1e-9,
            rule="exact",
            refuted_by=("swapped-phase",),
        ),
        Claim(
            "the camera there and back: largest difference",
            table.per_seed("exact", arm="there and back"),
            at_most=1e-4,
            rule="exact",
        ),
        Claim(
            "F has 114,884 parameters: difference",
            table.per_seed("exact", arm="size of F"),
            at_least=0,
            at_most=0,
            rule="exact",
        ),
        Claim(
            "weights 1, 0 and .7 give G, S and their sum: largest difference",
            table.per_seed("exact", arm="branches"),
            at_most=1e-6,
            rule="exact",
        ),
    ]


def claims(table: Table) -> list[Claim]:
    """What F takes out, what is won back and the exact checks decide; the cost and the filters support."""
    return [
        Claim(
            "held out: squared error of F(y + n) over that of the capture of y + n, both to the capture of y",
            table.per_seed("ratio"),
            at_most=0.5,
            refuted_by=("clean-only-F",),
        ),
        Claim(
            "held out: |F(y + n) - F(y)|^2 over that of the captures, what F lets through of the noise",
            table.per_seed("passed"),
            at_most=0.55,
            key=False,
            refuted_by=("clean-only-F",),
        ),
        Claim(
            "accuracy under PGD with 20 steps, won by the purifier",
            table.gain("raw", "undefended", "pgd"),
            at_least=0.15,
        ),
        *_exact_claims(table),
        Claim(
            "clean accuracy that the purifier costs",
            -table.gain("raw", "undefended", "clean"),
            at_most=DROP,
            key=False,
        ),
        Claim(
            "accuracy under PGD over that of the best filter",
            table.per_seed("pgd", arm="raw") - _best_filter(table),
            at_least=-0.01,
            key=False,
        ),
        Claim(
            "PGD through the purifier leaves no more than PGD that does not know it: difference of accuracies",
            table.per_seed("pgd", arm="through the purifier") - table.per_seed("grey", arm="through the purifier"),
            at_most=0.0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Clean accuracy against accuracy under attack, and accuracy of the purifier's parts."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for arm in ("undefended", *FILTERS, "same size in RGB", "S alone", "G alone", "raw"):
        own = arm in ("S alone", "G alone", "raw")
        clean, pgd = (table.per_seed(c, arm=arm).mean() for c in ("clean", "pgd"))
        left.plot(clean, pgd, "s" if own else "o", ms=5, label=arm)
    left.set(xlabel="clean accuracy", ylabel="accuracy under PGD", title="purifiers that the attack does not know")
    left.legend(frameon=False, fontsize=7)
    bars = {"undefended": ("undefended", "pgd"), "purified": ("raw", "pgd"), "known": ("through the purifier", "pgd")}
    right.bar(list(bars), [table.per_seed(c, arm=a).mean() for a, c in bars.values()])
    right.set(ylabel="accuracy under PGD", title="and once it is known")
    return drawing
