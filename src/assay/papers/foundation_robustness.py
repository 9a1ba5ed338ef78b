"""Foundation-model-oriented robustness: images that a strong oracle still takes for what they were fool other models.

The oracle is the majority of three convolutions trained with augmentation, the generator a small autoencoder with a
codebook. Evaluated are a convolution trained on a few clean images, one trained on the same with augmentation, and a
linear softmax. What decides: the oracle agrees with every returned image; the accuracy of the first falls further with
a larger budget; and the returned images are those of a loop by hand that keeps the last accepted candidate. Support:
the order of the models, images without the oracle's stop, random steps of the same length, and the oracle on itself.
In pilots the linear model is last, as expected, but augmentation does not raise FMR: as many steps on 200 digits, and
raw gradients, with which a model moves little where its loss is flat.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks.engine import Climb
from assay.data import Data, load_data
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded
from assay.training import Supervised
from assay.vision import ConvAE, Ensemble, FMREvaluator, ImageGenerator, LatentPerturber, PCAAutoencoder

CLEAN, AUGMENTED, LINEAR, ORACLE = "clean", "augmented", "linear", "oracle member"
FREE, RANDOM = "without the oracle's stop", "random steps"
SHORT = 5  # the smaller budget

PAPER = Paper(
    slug="foundation-robustness",
    title="Foundation Model-oriented Robustness: Robust Image Model Evaluation with Pretrained Models",
    authors="Peiyan Zhang, Haoyang Liu, Chaozhuo Li, Xing Xie, Sunghun Kim, Haohan Wang",
    year=2023,
    arxiv="2308.10632",
    room="vision",
    also=("explain",),
    kind="measure + benchmark",
    implements=(
        "vision.FMREvaluator",
        "vision.LatentPerturber",
        "vision.fmr_score",
        "vision.sparse_mask",
        "vision.ConvAE",
        "vision.PCAAutoencoder",
        "vision.HFVQModel",
        "vision.TamingVQGAN",
        "vision.Ensemble",
        "vision.CLIPZeroShot",
    ),
    claim="Images moved along a generator by a model's own loss keep their label for an oracle and lose the model's.",
    headline="MNIST, CIFAR-10 and ImageNet: the ratio of perturbed to standard accuracy is far below 100 for standard "
    "networks, higher for transformers and augmentation, highest for discrete adversarial training.",
    peers=("robustness-gym", "robustbench"),
    baselines=(AUGMENTED, LINEAR, RANDOM),
    shams={
        "random-latent-steps": "the latents move along random directions, as far as the gradient step would",
        "no-oracle-stop": "the oracle is not asked: the image of the last step is returned",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "generator": "pca", "step": 0.5, "few": 100, "test": 25, "budget": 6,
                           "steps": 30, "oracle": 40}),
        Scale("claim", 5, {"data": "digits", "generator": "vq", "step": 1.0, "few": 200, "test": 200, "budget": 30,
                           "steps": 300, "oracle": 500}),
        Scale("gpu", 5, {"data": "mnist", "generator": "vq", "step": 1.0, "few": 2000, "test": 1000, "budget": 50,
                         "steps": 4000, "oracle": 10_000}),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _RandomSteps(LatentPerturber):
    contract: ClassVar[bool] = True

    def shift(self, run: Climb) -> Tensor:
        along = run.draws.normal(*run.z.shape[1:]).to(run.z)
        length = (self.step_size * run.grad).flatten(1).norm(dim=1) / along.flatten(1).norm(dim=1)
        return along * length.view(-1, *[1] * (along.dim() - 1))


@dataclass(frozen=True, kw_only=True)
class _RandomFMR(FMREvaluator):
    def perturber(self) -> LatentPerturber:
        return _RandomSteps(oracle=self.oracle, steps=self.budget, step_size=self.step_size)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def distorted(x: Tensor, draws: Draws) -> Tensor:
    """Images turned by up to 12 degrees, scaled and sheared by up to 10%, moved by up to 1/16, with noise 0.1."""
    u = 2 * draws.uniform(6).to(x) - 1
    turn = u[:, 0] * math.pi / 15
    scale, shear, move = 1 + 0.1 * u[:, 1:3], 0.1 * u[:, 3], 0.125 * u[:, 4:6]
    top = torch.stack((turn.cos() * scale[:, 0], -turn.sin() + shear, move[:, 0]), 1)
    bottom = torch.stack((turn.sin(), turn.cos() * scale[:, 1], move[:, 1]), 1)
    grid = F.affine_grid(torch.stack((top, bottom), 1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False)
    return (moved + 0.1 * draws.normal(*x.shape[1:]).to(x)).clamp(0, 1)


def _cnn(data: Data, name: str, seed: int) -> nn.Module:
    channels, height, width = data.shape
    with seeded(seed, name):
        return SmallCNN((channels, height, width), len(data.classes), (16, 32), 64)


def _generator(scale: Scale, train: Data, seed: int) -> ImageGenerator:
    if scale["generator"] == "pca":
        return PCAAutoencoder.fit(train, 16)
    return ConvAE.fit(train, seed=seed, width=16, down=1 if train.shape[1] < 16 else 2, steps=scale["oracle"])


def by_hand(
    model: nn.Module, generator: ImageGenerator, oracle: nn.Module, x: Tensor, y: Tensor, budget: int, step: float
) -> tuple[Tensor, list[int]]:
    """One image at a time: the last candidate that the oracle accepts, and its number."""
    images, numbers = [], []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        kept, number, z = image, 0, generator.encode(image)
        for b in range(1, budget + 1):
            z = z.detach().requires_grad_()
            F.cross_entropy(model(generator.decode(z)), label).backward(inputs=[z])
            assert z.grad is not None
            z = z.detach() + step * z.grad
            candidate = generator.decode(z).detach()
            if int(oracle(candidate)) != int(label):
                break
            kept, number = candidate, b
        images.append(kept)
        numbers.append(number)
    return torch.cat(images), numbers


def _exact(evaluator: FMREvaluator, model: nn.Module, test: Data, seed: int) -> dict[str, float]:
    """Against the loop by hand on images that the oracle knows, in float64: a code that flips is a visible change."""
    generator = copy.deepcopy(evaluator.generator).double()
    oracle, model = (copy.deepcopy(m).double() for m in (evaluator.oracle, model))
    known = test[predict(evaluator.oracle, test.x) == test.y.float()][:12]
    known = known.with_x(known.x.double())
    double = replace(evaluator, generator=generator, oracle=oracle)
    images, steps, _ = double.perturb(model, known, seed=seed)
    expected, numbers = by_hand(model, generator, oracle, known.x, known.y, double.budget, double.step_size)
    return {"replay": float((images - expected).abs().max()), "numbers": float(np.abs(steps.numpy() - numbers).max())}


def _row(arm: str, evaluator: FMREvaluator, model: nn.Module, test: Data, seed: int) -> dict[str, Any]:
    report = evaluator.evaluate(model, test, seed=seed)
    row = {"arm": arm, "sa": report.sa, "pa": report.pa, "fmr": report.fmr, "agreement": report.oracle_agreement}
    row |= {"oracle": report.oracle_accuracy, "steps": float(report.steps.double().mean())}
    return row | {"distance": float(report.distance.mean()), "reconstruction": report.reconstruction}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Generator, oracle, the evaluated models, and the rows that no sham changes."""
    train, test = _images(scale["data"])
    test, few = test.limit(scale["test"], seed=seed), train.limit(scale["few"], seed=seed)
    strong, short = Supervised(steps=scale["oracle"]), Supervised(steps=scale["steps"])
    members = [
        strong.fit(_cnn(train, f"oracle {k}", seed), train, seed=derive(seed, k), augment=distorted) for k in range(3)
    ]
    with seeded(seed, "linear"):
        linear = MLP(train.shape, len(train.classes), ())
    models = {
        CLEAN: short.fit(_cnn(train, "evaluated", seed), few, seed=seed),
        AUGMENTED: short.fit(_cnn(train, "evaluated", seed), few, seed=seed, augment=distorted),
        LINEAR: short.fit(linear, few, seed=seed),
    }
    options: dict[str, Any] = {"generator": _generator(scale, train, seed).eval(), "oracle": Ensemble(members).eval()}
    options |= {"step_size": scale["step"], "min_oracle_acc": 0.0, "max_recon_error": 1.0}
    full = FMREvaluator(budget=scale["budget"], **options)
    rows = [_row(arm, full, models[arm], test, seed) for arm in (AUGMENTED, LINEAR)]
    free = FMREvaluator(budget=scale["budget"], oracle_stop=False, **options)
    rows.append(_row(FREE, free, models[CLEAN], test, seed))
    rows.append(
        _row(RANDOM, _RandomFMR(budget=scale["budget"], **options), models[CLEAN], test, derive(seed, "random"))
    )
    alone = FMREvaluator(budget=scale["budget"], **{**options, "oracle": members[0]})
    rows.append(_row(ORACLE, alone, members[0], test, seed))
    return {"model": models[CLEAN], "test": test, "options": options, "rows": rows}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The model trained on a few clean images under both budgets, and the replay; shams change the moves of images."""
    kind = _RandomFMR if sham == "random-latent-steps" else FMREvaluator
    options = {**given["options"], "oracle_stop": sham != "no-oracle-stop"}
    rows = []
    for arm, budget in ((CLEAN, scale["budget"]), (f"{CLEAN}, short", SHORT)):
        rows.append(_row(arm, kind(budget=budget, **options), given["model"], given["test"], seed))
    replay = _exact(kind(budget=scale["budget"], **options), given["model"], given["test"], seed)
    return Table.of([*rows, *given["rows"], {"arm": "exact", **replay}])


def claims(table: Table) -> list[Claim]:
    """The oracle's agreement, the fall with the budget and the replay decide; the rest supports."""
    free, chance = "no-oracle-stop", "random-latent-steps"
    return [
        Claim(
            "the oracle's agreement on the returned images",
            table.per_seed("agreement", arm=CLEAN),
            at_least=1.0,
            rule="exact",
            refuted_by=(free,),
        ),
        Claim(
            "accuracy on perturbed images, the whole budget less 5 steps",
            table.gain(CLEAN, f"{CLEAN}, short", "pa"),
            at_most=-0.03,
            refuted_by=(chance,),
        ),
        Claim(
            "returned images against the last accepted ones of a loop by hand: largest difference",
            table.per_seed("replay", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=(free, chance),
        ),
        Claim(
            "FMR with augmentation over that without, in points",
            table.gain(AUGMENTED, CLEAN, "fmr"),
            at_least=5.0,
            key=False,
        ),
        Claim(
            "FMR of the convolution over that of the linear softmax, in points",
            table.gain(CLEAN, LINEAR, "fmr"),
            at_least=-3.0,
            key=False,
        ),
        Claim(
            "the largest FMR of the evaluated models",
            np.max([table.per_seed("fmr", arm=a) for a in (CLEAN, AUGMENTED, LINEAR)], 0),
            at_most=100.0,
            key=False,
        ),
        Claim(
            "the oracle's agreement without its stop",
            table.per_seed("agreement", arm=FREE),
            at_most=0.9,
            key=False,
        ),
        Claim(
            "accuracy on perturbed images, less that after random steps of the same length",
            table.gain(CLEAN, RANDOM, "pa"),
            at_most=-0.03,
            key=False,
        ),
        Claim(
            "accuracy on perturbed images, less that on plain reconstructions",
            table.per_seed("pa", arm=CLEAN) - table.per_seed("reconstruction", arm=CLEAN),
            at_most=-0.03,
            key=False,
        ),
        Claim(
            "FMR of a member of the oracle where it is the oracle",
            table.per_seed("fmr", arm=ORACLE),
            at_least=100 - 1e-9,
            at_most=100 + 1e-9,
            rule="exact",
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Standard and perturbed accuracy of each arm, one dot a seed."""
    drawing = Figure(figsize=(7.4, 3.4), layout="constrained")
    axes = drawing.subplots()
    arms = (CLEAN, AUGMENTED, LINEAR, ORACLE, RANDOM, FREE)
    for place, arm in enumerate(arms):
        for column, mark, color in (("sa", "s", "0.6"), ("pa", "o", "C0")):
            values = table.per_seed(column, arm=arm)
            axes.plot(values, np.full(len(values), place), mark, ms=4, color=color)
    axes.set(yticks=range(len(arms)), yticklabels=arms, xlim=(-0.02, 1.02))
    axes.set(xlabel="accuracy on the images (squares) and on the perturbed ones (dots)")
    axes.invert_yaxis()
    return drawing
