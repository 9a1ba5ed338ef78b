"""A small anchor-free detector, for examples and tests on generated scenes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.patch import Target, box_iou
from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable
from assay.training import Plan, State, fit

STRIDE = 8


@rebuildable
class GridDetector(nn.Module):
    """Convolutions of stride 8; each cell says whether a sign's middle lies in it, its box, and its class.

    Images are (n, 3, h, w) in [0, 1]. Of a cell: the middle of the box by a sigmoid inside it, the logarithms of its
    sides over 32 pixels, an objectness logit and class logits. It has what a patch attack asks of a detector:
    ``losses``, ``proposals`` and ``predict``.
    """

    def __init__(self, classes: int = 3, width: int = 16, score: float = 0.05, nms: float = 0.5) -> None:
        super().__init__()
        self.classes, self.score, self.nms = classes, score, nms
        layers: list[nn.Module] = []
        for a, b in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        layers += [nn.Conv2d(4 * width, 4 * width, 3, 1, 2, 2), nn.BatchNorm2d(4 * width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(4 * width, 5 + classes, 3, 1, 1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw d"]:
        """Raw outputs of every cell: four of the box, the objectness, the classes."""
        return self.head(self.body(images - 0.5)).permute(0, 2, 3, 1)

    def _boxes(self, raw: Float[Tensor, "n gh gw d"]) -> Float[Tensor, "n gh gw 4"]:
        rows, columns = (torch.arange(k, device=raw.device) for k in raw.shape[1:3])
        cell = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        middle = (cell + raw[..., :2].sigmoid()) * STRIDE
        half = 16 * raw[..., 2:4].clamp(-4, 4).exp()
        return torch.cat((middle - half, middle + half), -1)

    def losses(self, images: Float[Tensor, "n 3 h w"], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Objectness of all cells, and box and class of those that hold the middle of a sign; without signs 0."""
        raw = self(images)
        where = torch.cat([torch.full_like(t["labels"], k) for k, t in enumerate(targets)])
        boxes, labels = (torch.cat([t[name] for t in targets]) for name in ("boxes", "labels"))
        middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp_min(1)
        limit = torch.tensor((raw.shape[2] - 1, raw.shape[1] - 1), device=raw.device)
        cell = (middle / STRIDE).long().clamp_min(0).minimum(limit)
        own = raw[where, cell[:, 1], cell[:, 0]]
        wanted = torch.zeros_like(raw[..., 4])
        wanted[where, cell[:, 1], cell[:, 0]] = 1
        box = F.smooth_l1_loss(own[:, :2].sigmoid(), middle / STRIDE - cell) * 4
        box = box + F.smooth_l1_loss(own[:, 2:4], (side / 32).log())
        presence = F.binary_cross_entropy_with_logits(raw[..., 4], wanted, reduction="sum") / max(len(boxes), 1)
        if not len(boxes):
            return {"objectness": presence, "box": own.sum(), "class": own.sum()}
        return {"objectness": presence, "box": box, "class": F.cross_entropy(own[:, 5:], labels)}

    def proposals(self, images: Float[Tensor, "n 3 h w"]) -> list[dict[str, Tensor]]:
        """All cells of each image: boxes (p, 4), class logits (p, c) and objectness logits (p,), with gradients."""
        raw = self(images)
        boxes = self._boxes(raw).flatten(1, 2)
        flat = raw.flatten(1, 2)
        return [{"boxes": b, "logits": r[:, 5:], "objectness": r[:, 4]} for b, r in zip(boxes, flat, strict=True)]

    def predict(self, images: Float[Tensor, "n 3 h w"]) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of each image after suppression of overlaps, best first.

        A score is the objectness times the probability of the likeliest class.
        """
        found = []
        for cells in self.proposals(images):
            best, labels = cells["logits"].softmax(1).max(1)
            scores = cells["objectness"].sigmoid() * best
            order = scores.argsort(descending=True, stable=True)
            order = order[scores[order] >= self.score]
            kept = order[_survivors(cells["boxes"][order], labels[order], self.nms)]
            found.append({"boxes": cells["boxes"][kept], "scores": scores[kept], "labels": labels[kept]})
        return found


def fit_detector(
    detector: nn.Module, images: Float[Tensor, "n 3 h w"], targets: list[Target], plan: Plan, *, seed: int
) -> nn.Module:
    """A copy of a detector trained on the sum of its ``losses``; images in [0, 1], one target each.

    Raises InputError for unusable images and another number of targets.
    """
    if len(targets) != len(images):
        raise InputError(f"fit_detector: {len(targets)} targets of {len(images)} images; expected one an image")
    data = Data(images, torch.zeros(len(images), dtype=torch.int64), ("scene", "none"), name="scenes")

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        wanted = [{k: t.to(batch.x.device) for k, t in targets[i].items()} for i in batch.index.tolist()]
        losses: dict[str, Tensor] = model.losses(batch.x, wanted)  # type: ignore[operator]
        return torch.stack(list(losses.values())).sum()

    return fit(detector, data, objective, plan, seed=seed)


def _survivors(boxes: Float[Tensor, "k 4"], labels: Tensor, overlap: float) -> Tensor:
    """Which of boxes, best first, overlap no better surviving one of their class by more than ``overlap``."""
    clash = ((box_iou(boxes, boxes) > overlap) & (labels[:, None] == labels)).triu(1)
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for k in range(len(boxes)):
        alive &= ~(clash[k] & alive[k])
    return alive
