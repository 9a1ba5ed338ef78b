"""Where samples lie among the retained samples that are most like them, and the triplet loss that moves them off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.detect.layers import chosen_layers
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, features, predict
from assay.runtime.random import Draws

CHUNK = 1024  # erased samples that are compared with all the retained ones at once


def manifold_triplet_loss(
    anchor: Float[Tensor, "n d"],
    pos: Float[Tensor, "n d"],
    neg: Float[Tensor, "n d"],
    margin: Float[Tensor, " n"] | float,
    hinge: Literal["sample", "batch"] = "sample",
) -> Float[Tensor, ""]:
    """mean over x of [|pos - c|^2 - |neg - c|^2 + margin]_+ with the anchors c (Wang et al., 2026, arXiv:2605.22871).

    ``neg`` is pushed off the anchor until it is ``margin`` further from it, in squared distance, than ``pos``. With one
    margin it is torch's triplet_margin_with_distance_loss under the squared distance. ``hinge`` "batch" cuts the mean
    at 0 instead of each term, as the official code does. Raises InputError for shapes that differ and margins that are
    NaN.
    """
    if anchor.dim() != 2 or not len(anchor) or anchor.shape != pos.shape or anchor.shape != neg.shape:
        shapes = [tuple(t.shape) for t in (anchor, pos, neg)]
        raise InputError(f"manifold_triplet_loss: {shapes}; expected anchors, positives and negatives of one (n, d)")
    given = torch.as_tensor(margin, dtype=anchor.dtype, device=anchor.device)
    if given.shape not in ((), (len(anchor),)) or given.isnan().any():
        raise InputError(f"manifold_triplet_loss: margins {tuple(given.shape)}; expected one, or one a row, none NaN")
    if hinge not in ("sample", "batch"):
        raise unknown("hinge of manifold_triplet_loss", str(hinge), ("sample", "batch"))
    terms = (pos - anchor).square().sum(1) - (neg - anchor).square().sum(1) + given
    return terms.relu().mean() if hinge == "sample" else terms.mean().relu()


@dataclass(frozen=True)
class Neighbourhoods:
    """The retained samples most like each of some samples, S_k(x), and how far each sample lies off them.

    ``x`` (n, ...) are the samples, ``near`` the retained ones that are in a neighbourhood, ``rows`` (n, k) says which
    of ``near`` are in whose, nearest first, ``positions`` (n, k) where these are in all that is retained, and
    ``centres`` (n, d) is the mean of their representations under the model that they were found with. Representations
    are the outputs of ``layer``, averaged over space; with ``normalize`` of norm 1, else divided by sqrt(d), so that a
    squared distance is a mean over entries and centre and samples are on one scale.
    """

    x: Float[Tensor, "n ..."]
    near: Data
    rows: Int[Tensor, "n k"]
    positions: Int[Tensor, "n k"]
    centres: Float[Tensor, "n d"]
    layer: str
    normalize: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Data,
        retain: Data,
        *,
        k: int = 5,
        feature: str = "penultimate",
        normalize: bool = True,
        geometry: Literal["local", "class"] = "local",
        across: bool = False,
        seed: int = 0,
    ) -> Neighbourhoods:
        """Neighbourhoods of ``data`` among ``retain``, by the cosine between representations; labels are not read.

        ``geometry`` "class": k random retained samples of the class that the model predicts, around the centre of all
        of these. ``across`` keeps to samples of which the model predicts another class. Raises InputError where fewer
        than k >= 1 samples are left to choose from, where ``feature`` ("penultimate", the last rectified layer, or a
        dotted name) names no layer or several, and for representations that are not finite or 0.
        """
        for name, part in (("data", data), ("retain", retain)):
            check_inputs(f"Neighbourhoods: {name}", part.x, part.y, part.bounds)
        layers = chosen_layers(model, feature, retain.x[:16])
        if len(layers) != 1:
            raise InputError(f"Neighbourhoods: feature {feature!r} names {len(layers)} layers; expected one")
        if geometry not in ("local", "class"):
            raise unknown("geometry", str(geometry), ("local", "class"))
        z, held = (_embedded(model, part.x, layers[0], normalize) for part in (data, retain))
        found = None
        if geometry == "class" or across:
            found = predict(model, data.x).argmax(1)[:, None] == predict(model, retain.x).argmax(1)
        allowed = found if found is None or geometry == "class" else ~found
        _check_choice(k, len(retain), allowed)
        if geometry == "class" and allowed is not None:
            scores = Draws(seed, "neighbours", data.index).uniform(len(retain)).masked_fill(~allowed, -1)
            positions = scores.topk(k, 1).indices
            centres = allowed.to(held) @ held / allowed.sum(1, keepdim=True)
        else:
            positions = _nearest(z, held, k, allowed)
            centres = held[positions].mean(1)
        unique, rows = positions.unique(return_inverse=True)
        return cls(data.x, retain[unique], rows, positions, centres, layers[0], normalize)

    def embed(self, out: Float[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        """A layer's pooled outputs as representations; a norm of 0 stays 0."""
        return F.normalize(out, dim=1) if self.normalize else out / out.shape[1] ** 0.5

    def gaps(
        self, model: nn.Module, *, rows: Tensor | None = None, centres: Tensor | None = None, batch_size: int = BATCH
    ) -> Float[Tensor, " n"]:
        """|z_x - c|^2 - mean over p in S_k(x) of |z_p - c|^2 under ``model``, c their mean there or ``centres``.

        How much further a sample is from the middle of its neighbourhood than the neighbours are. ``rows``: of these
        samples only. In evaluation mode, float32 on the CPU. InputError where representations are not finite.
        """
        chosen = torch.arange(len(self.x)) if rows is None else rows
        used, local = self.rows[chosen].unique(return_inverse=True)
        z = _embedded(model, self.x[chosen], self.layer, self.normalize, batch_size)
        near = _embedded(model, self.near.x[used], self.layer, self.normalize, batch_size)[local]
        c = near.mean(1) if centres is None else centres[chosen]
        return (z - c).square().sum(1) - (near - c[:, None]).square().sum(2).mean(1)


def _embedded(model: nn.Module, x: Tensor, layer: str, normalize: bool, batch_size: int = BATCH) -> Tensor:
    out = features(model, x, [layer], batch_size=batch_size)[layer]
    if not torch.isfinite(out).all():
        raise InputError(f"representations at {layer!r}: NaN or infinite values; expected finite")
    return F.normalize(out, dim=1) if normalize else out / out.shape[1] ** 0.5


def _check_choice(k: int, n: int, allowed: Tensor | None) -> None:
    least = n if allowed is None else int(allowed.sum(1).min())
    if not 1 <= k <= least:
        raise InputError(f"Neighbourhoods: k={k} of {least} retained samples to choose from; expected 1 to {least}")


def _nearest(z: Tensor, held: Tensor, k: int, allowed: Tensor | None) -> Int[Tensor, "n k"]:
    """Positions of the k rows of ``held`` with the highest cosine to each row of ``z``, highest first."""
    unit, found = F.normalize(held, dim=1), []
    for start in range(0, len(z), CHUNK):
        near = F.normalize(z[start : start + CHUNK], dim=1) @ unit.T
        if allowed is not None:
            near = near.masked_fill(~allowed[start : start + CHUNK], -2)
        found.append(near.topk(k, 1).indices)
    return torch.cat(found)
