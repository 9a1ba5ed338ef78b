"""Kinds of forget sets: at random, a class, a part of a class, what a field marks, or named samples."""

from __future__ import annotations

import math
import re

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.random import derive, torch_rng

COMPONENTS = 32


def random_set(train: Data, n: int, *, seed: int = 0) -> tuple[Data, Data]:
    """``n`` random samples to forget, and the rest."""
    if not 1 <= n < len(train):
        raise InputError(f"random forget set: n={n} of {len(train)}; expected 1 to {len(train) - 1}")
    order = torch.randperm(len(train), generator=torch_rng(seed, "forget set"))
    return _parts(train, torch.zeros(len(train)).index_fill_(0, order[:n], 1).bool(), "random forget set")


def sub_classes(
    train: Data, label: int, *, clusters: int = 4, points: Float[Tensor, "n d"] | None = None, seed: int = 0
) -> Int[Tensor, " n"]:
    """The cluster of each sample of class ``label``, 0 the largest, and -1 for the samples of other classes.

    k-means on the first 32 principal components of ``points``, one row a sample of ``train`` (a network's features,
    say), else of the inputs. A part of a class that looks alike is harder to forget than a random part of its size:
    what is learned about the rest of the class has to change.
    """
    rows = (train.y == label).nonzero()[:, 0]
    if clusters < 2 or len(rows) < clusters:
        raise InputError(
            f"sub-classes of {label}: {len(rows)} samples, {clusters} clusters; expected 2 to as many clusters"
        )
    flat = (train.x if points is None else points)[rows].flatten(1).double().numpy()
    near = PCA(min(COMPONENTS, *flat.shape), random_state=0).fit_transform(flat)
    fitted = KMeans(clusters, n_init=4, random_state=derive(seed, "k-means") % 2**31).fit(near)
    found = torch.from_numpy(fitted.labels_).long()
    rank = (-torch.bincount(found, minlength=clusters)).argsort(stable=True).argsort()
    return torch.full((len(train),), -1, dtype=torch.int64).index_put_((rows,), rank[found])


def sub_class_set(
    train: Data,
    label: int,
    *,
    which: int = 0,
    clusters: int = 4,
    points: Float[Tensor, "n d"] | None = None,
    seed: int = 0,
) -> tuple[Data, Data]:
    """The ``which``-th largest cluster of a class to forget (see ``sub_classes``), and the rest."""
    if not 0 <= which < clusters:
        raise InputError(f"sub-class {which}: expected 0 to {clusters - 1}")
    found = sub_classes(train, label, clusters=clusters, points=points, seed=seed)
    return _parts(train, found == which, f"sub-class {which} of {label}")


def field_set(train: Data, name: str, value: int) -> tuple[Data, Data]:
    """The samples whose field ``name`` is ``value`` (a group, or a mark of poisoned samples), and the rest."""
    if name not in train.fields or train.fields[name].dim() != 1:
        known = sorted(k for k, v in train.fields.items() if v.dim() == 1)
        raise InputError(f"forget {name}={value}: {train.name!r} has no such field; expected one of {known}")
    return _parts(train, train.fields[name] == value, f"forget {name}={value}")


def _parts(train: Data, chosen: Tensor, what: str) -> tuple[Data, Data]:
    if not chosen.any() or chosen.all():
        raise InputError(f"{what}: {int(chosen.sum())} of {len(train)} training samples; expected some, and not all")
    return train[chosen], train[~chosen]


def from_spec(train: Data, kind: str, text: str) -> tuple[Data, Data] | None:
    """The set that ``kind``=``text`` names: random=SHARE, subclass=CLASS[:CLUSTER], FIELD=VALUE; None for others."""
    where = f"forget '{kind}={text}'"
    if kind == "random":
        share = float(text) if re.fullmatch(r"0?\.[0-9]+", text) else math.nan
        if not 0 < share < 1:
            raise InputError(f"{where}: expected a share between 0 and 1, such as random=0.1")
        return random_set(train, max(round(share * len(train)), 1))
    if kind == "subclass":
        if not re.fullmatch(r"[0-9]{1,9}(:[0-9]{1,4})?", text):
            raise InputError(f"{where}: expected the number of a class and of a cluster, such as subclass=3:0")
        label, _, which = text.partition(":")
        return sub_class_set(train, int(label), which=int(which or 0))
    if kind in train.fields:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise InputError(f"{where}: expected an integer value of the field")
        return field_set(train, kind, int(text))
    return None
