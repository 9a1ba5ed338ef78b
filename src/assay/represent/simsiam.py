"""SimSiam: two views of an image predict each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.represent.augment import Augmentation
from assay.runtime.checks import check_inputs
from assay.runtime.content import content_draws
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.random import seeded
from assay.training import Plan, State, Supervised, fit


def simsiam_loss(
    p1: Float[Tensor, "n d"], z1: Float[Tensor, "n d"], p2: Float[Tensor, "n d"], z2: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """-(cos(p1, z2) + cos(p2, z1)) / 2, mean over samples, no gradient through z (Chen & He, 2021, eq. 1 to 4).

    p are predictions and z projections of the two views; in [-1, 1].
    """
    return -(F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()) / 2


def first_features(where: str, backbone: nn.Module, x: Float[Tensor, "n ..."]) -> Float[Tensor, "1 w"]:
    """What ``backbone`` makes of the first sample. Raises InputError unless that is a row."""
    with evaluating(backbone):
        found = batched(backbone, x[:1], device=device_of(backbone))
    if found.dim() != 2:
        raise InputError(f"{where}: the backbone gives {tuple(found.shape)} for one sample; expected (1, w)")
    return found


class SelfSupervised(nn.Module):
    """``backbone`` and ``projector``; the representation of x is projector(backbone(x)), (n, d)."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        return self.projector(self.backbone(x))


class _Siamese(nn.Module):
    """The encoder with SimSiam's heads (section 3): a projector of three layers and a predictor of two."""

    def __init__(self, backbone: nn.Module, features: Float[Tensor, "1 w"], dim: int, pred_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, size in enumerate((features.shape[1], dim, dim)):
            layers += [nn.Linear(size, dim, bias=False), nn.BatchNorm1d(dim, affine=k < 2)]
            layers += [nn.ReLU()] if k < 2 else []
        self.encoder = SelfSupervised(backbone, nn.Sequential(*layers).to(features.dtype))
        self.predictor = nn.Sequential(
            nn.Linear(dim, pred_dim, bias=False), nn.BatchNorm1d(pred_dim), nn.ReLU(), nn.Linear(pred_dim, dim)
        ).to(features.dtype)


@dataclass(frozen=True, kw_only=True)
class SimSiam:
    """``fit(backbone, data, *, seed)`` -> SelfSupervised (Chen & He, 2021, arXiv:2011.10566, algorithm 1).

    Two views of each image by ``augment``; ``dim`` is the width of the projection and ``pred_dim`` that of the
    predictor's hidden layer. ``backbone`` maps (n, ...) to (n, w) and stays as it is; labels are not used. The paper
    trains by SGD with a rate of 0.05 for a batch of 256 over 100 epochs. InputError for data that cannot be used.
    """

    kind: ClassVar[str] = "function"

    dim: int = 2048
    pred_dim: int = 512
    augment: Augmentation = Augmentation()
    epochs: int = 100
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 1e-4

    def fit(self, backbone: nn.Module, data: Data, *, seed: int) -> SelfSupervised:
        """The trained encoder, in evaluation mode."""
        check_inputs("SimSiam", data.x, data.y, data.bounds)
        if min(len(data), self.batch_size) < 2 or self.dim < 1 or self.pred_dim < 1:
            given = f"{len(data)} samples, batch_size={self.batch_size}, dim={self.dim}, pred_dim={self.pred_dim}"
            raise InputError(f"SimSiam: {given}; expected at least 2 samples, batches of 2 and widths >= 1")
        features = first_features("SimSiam", backbone, data.x)
        with seeded(seed, "heads"):
            start = _Siamese(backbone, features, self.dim, self.pred_dim).to(device_of(backbone))
        plan = Plan(
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(data)),
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            drop_last=True,
        )
        trained = fit(start, data, self.objective, plan, seed=seed)
        if not isinstance(trained, _Siamese):
            raise TypeError(f"training gave {type(trained).__name__}")
        return trained.encoder

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch."""
        if not isinstance(model, _Siamese):
            raise TypeError(f"SimSiam trains its own heads, not a {type(model).__name__}")
        z1, z2 = (model.encoder(self.augment(batch.x, state.draws(name, batch.index))) for name in ("one", "two"))
        return simsiam_loss(model.predictor(z1), z1, model.predictor(z2), z2)


def linear_classifier(
    backbone: nn.Module, data: Data, *, seed: int, epochs: int = 30, augment: Augmentation | None = None, views: int = 1
) -> nn.Linear:
    """A linear classifier of the frozen backbone's features, by cross-entropy on the labels of ``data``.

    With ``augment`` it is trained on ``views`` views of each image, and on the images themselves.
    """
    images = [data.x]
    if augment is not None:
        images += [augment(data.x, content_draws(seed, f"view/{k}", data.x)) for k in range(views)]
    with evaluating(backbone):
        found = [batched(backbone, x, device=device_of(backbone)) for x in images]
    if found[0].dim() != 2:
        raise InputError(f"linear_classifier: the backbone gives {tuple(found[0].shape)}; expected (n, w)")
    features = Data(
        x=torch.cat(found),
        y=data.y.repeat(len(images)),
        classes=data.classes,
        bounds=(-math.inf, math.inf),
        name="features",
    )
    with seeded(seed, "linear"):
        start = nn.Linear(features.x.shape[1], len(data.classes)).to(features.x.dtype)
    trained = Supervised(epochs=epochs, lr=1e-2).fit(start, features, seed=seed)
    if not isinstance(trained, nn.Linear):
        raise TypeError(f"training gave {type(trained).__name__}")
    return trained
