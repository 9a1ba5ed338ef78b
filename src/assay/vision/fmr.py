"""Robustness of a classifier relative to a foundation model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, batched, evaluating
from assay.runtime.random import Draws
from assay.vision.conv_ae import ImageGenerator
from assay.vision.latent_perturber import LatentPerturber, labels_of


def fmr_score(sa: float, pa: float) -> float:
    """100 pa / sa, in percent; not clipped. Where ``sa`` is 0 it is undefined: NaN, with a RuntimeWarning."""
    if sa == 0:
        warnings.warn("FMR: the standard accuracy is 0", RuntimeWarning, stacklevel=2)
        return math.nan
    return 100 * pa / sa


def sparse_mask(generator: ImageGenerator, data: Data, fraction: float) -> Bool[Tensor, ...]:
    """The latents (of one sample's shape) that tell the labels: the ``fraction`` with the largest coefficients of an
    L1 logistic regression on standardised latents of ``data``.

    The paper prunes the latent space to what is relevant to the label; it does not say how in the text at hand.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"sparse_mask: fraction={fraction}; expected a share in (0, 1]")
    if len(data.y.unique()) < 2:
        raise InputError("sparse_mask: samples of one class; expected two classes or more to tell apart")
    with evaluating(generator):
        z = batched(generator.encode, data.x)
    flat = z.flatten(1)
    scaled = (flat - flat.mean(0)) / flat.std(0).clamp_min(1e-8)
    found = LogisticRegression(l1_ratio=1.0, C=0.1, solver="saga", max_iter=50, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a ranking of coefficients needs no last digits
        weight = torch.from_numpy(abs(found.fit(scaled.numpy(), data.y.numpy()).coef_).sum(0))
    mask = torch.zeros(flat.shape[1], dtype=torch.bool)
    mask[weight.argsort(descending=True, stable=True)[: max(round(fraction * len(weight)), 1)]] = True
    return mask.view(z.shape[1:])


@dataclass(frozen=True)
class FMRReport:
    """How a model fares on n images that the oracle still takes for what they were.

    ``sa`` and ``pa`` are its accuracies on the images and on the perturbed ones, all n of them, ``fmr`` their ratio in
    percent, ``per_class`` its accuracy on the perturbed images of each class (NaN where there are none).
    ``steps`` (n,) are the accepted steps: 0 where the image is returned as it was, either because the oracle was wrong
    about it (not ``eligible``) or rejected the first step. ``oracle_agreement`` is the oracle's accuracy on the
    returned images of eligible ones, ``rejections`` the share of these that it stopped, ``distance`` (n,) the Euclidean
    distance of the returned from the given images; ``reconstruction`` the model's accuracy on unperturbed
    reconstructions: what is lost to the generator alone. ``images`` are the returned ones.
    """

    sa: float
    pa: float
    fmr: float
    per_class: tuple[float, ...]
    steps: Int[Tensor, " n"]
    eligible: Bool[Tensor, " n"]
    oracle_accuracy: float
    oracle_agreement: float
    rejections: float
    distance: Float[Tensor, " n"]
    reconstruction: float
    images: Float[Tensor, "n ..."]


@dataclass(frozen=True, kw_only=True)
class FMREvaluator:
    """Foundation-model-oriented robustness (Zhang et al., 2023, arXiv:2308.10632): FMR = perturbed / standard accuracy.

    Every image that ``oracle`` labels rightly is moved along the images of ``generator`` by the gradient of the
    evaluated model's own loss, ``budget`` steps of ``step_size``, and stops at the last one that the oracle accepts
    (LatentPerturber). ``mask`` (sparse_mask) moves some latents only. An image without an accepted step is returned as
    it was given; with ``baseline`` "recon" the reconstruction takes the place of the given image throughout, a control
    that does not charge the model for the generator's faults. A model trained with this generator is favoured:
    compare under two. The oracle's own FMR is 100 by construction. ``oracle_stop=False`` takes all steps.

    InputError where the oracle's accuracy is below ``min_oracle_acc``; a RuntimeWarning where the mean squared error
    of reconstructions is above ``max_recon_error``.
    """

    kind: ClassVar[str] = "function"

    generator: ImageGenerator
    oracle: nn.Module
    budget: int = 50
    step_size: float = 0.1
    mask: Tensor | None = None
    baseline: Literal["original", "recon"] = "original"
    oracle_stop: bool = True
    min_oracle_acc: float = 0.5
    max_recon_error: float = 0.05

    def __post_init__(self) -> None:
        if self.budget < 0 or not self.step_size > 0:
            raise InputError(f"FMREvaluator: budget={self.budget}, step_size={self.step_size}; expected >= 0 and > 0")
        if self.baseline not in ("original", "recon"):
            raise unknown("baseline of FMREvaluator", str(self.baseline), ("original", "recon"))

    def perturber(self) -> LatentPerturber:
        """What moves the images."""
        return LatentPerturber(
            oracle=self.oracle, steps=self.budget, step_size=self.step_size, mask=self.mask, stop=self.oracle_stop
        )

    def perturb(
        self, model: nn.Module, data: Data, *, seed: int = 0, batch_size: int = BATCH
    ) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"], Bool[Tensor, " n"]]:
        """Returned images, accepted steps and eligibility of the images of ``data``, which lie in [0, 1]."""
        start = self._start(data)
        eligible = self.labels(self.oracle, start) == data.y
        images, steps = start.clone(), torch.zeros_like(data.y)
        method = self.perturber()
        for rows in eligible.nonzero()[:, 0].split(batch_size) if self.budget and eligible.any() else ():
            draws = Draws(seed, "fmr", data.index[rows])
            moved, taken = method.perturb(self.generator, model, start[rows], data.y[rows], draws)
            some = taken > 0
            images[rows[some]], steps[rows] = moved[some], taken
        return images, steps, eligible

    def evaluate(self, model: nn.Module, data: Data, *, seed: int = 0, batch_size: int = BATCH) -> FMRReport:
        """The report of ``model`` on the images and labels of ``data``."""
        start = self._start(data)
        recon = self._reconstructed(data)
        error = float((recon - data.x).square().mean())
        if error > self.max_recon_error:
            where = f"FMR: reconstructions are {error:.3g} off in mean square"
            warnings.warn(
                f"{where}, more than {self.max_recon_error:.3g}: PA measures them", RuntimeWarning, stacklevel=2
            )
        images, steps, eligible = self.perturb(model, data, seed=seed, batch_size=batch_size)
        oracle = float(eligible.double().mean())
        if oracle < self.min_oracle_acc:
            raise InputError(f"FMREvaluator: the oracle's accuracy is {oracle:.3g}; expected {self.min_oracle_acc:.3g}")
        hit = (self.labels(model, images) == data.y).double()
        sa, pa = float((self.labels(model, start) == data.y).double().mean()), float(hit.mean())
        agree = (self.labels(self.oracle, images) == data.y)[eligible]
        return FMRReport(
            sa=sa,
            pa=pa,
            fmr=fmr_score(sa, pa),
            per_class=tuple(float(hit[data.y == c].mean()) for c in range(len(data.classes))),
            steps=steps,
            eligible=eligible,
            oracle_accuracy=oracle,
            oracle_agreement=float(agree.double().mean()),
            rejections=float((steps[eligible] < self.budget).double().mean()),
            distance=(images - start).flatten(1).norm(dim=1),
            reconstruction=float((self.labels(model, recon) == data.y).double().mean()),
            images=images,
        )

    def transfer_matrix(
        self, models: Mapping[str, nn.Module], data: Data, *, seed: int = 0
    ) -> dict[tuple[str, str], float]:
        """FMR of model b on the images made for model a, by (a, b)."""
        start, found = self._start(data), {}
        for a, source in models.items():
            images = self.perturb(source, data, seed=seed)[0]
            for b, model in models.items():
                sa, pa = (float((self.labels(model, x) == data.y).double().mean()) for x in (start, images))
                found[a, b] = fmr_score(sa, pa)
        return found

    def labels(self, model: nn.Module, x: Tensor) -> Int[Tensor, " n"]:
        """What a model, or the oracle, takes images for."""
        with evaluating(model):
            return batched(lambda part: labels_of(model(part)), x)

    def _reconstructed(self, data: Data) -> Tensor:
        with evaluating(self.generator):
            return batched(self.generator, data.x)

    def _start(self, data: Data) -> Tensor:
        check_inputs("FMREvaluator", data.x, data.y, (0.0, 1.0))
        return data.x if self.baseline == "original" else self._reconstructed(data)
