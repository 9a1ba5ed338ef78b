"""Small networks for motions (n, 3, t, joints, persons): convolution over time, recurrence, graph convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.spec import rebuildable


class _Pooled(nn.Module):
    """(n, d, ...) to (n, d): the mean over all that is left."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class _OverTime(nn.Module):
    """(n, 3, t, joints, persons) to (n, 3 joints persons, t)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 1, 3, 4, 2).flatten(1, 3)


@rebuildable
class TemporalCNN(nn.Module):
    """Convolutions of width 5 over time, all coordinates as channels, the later ones with stride 2; mean over time."""

    def __init__(
        self, joints: int = 15, persons: int = 1, classes: int = 8, widths: tuple[int, ...] = (32, 32), kernel: int = 5
    ) -> None:
        super().__init__()
        body: list[nn.Module] = [_OverTime()]
        channels = 3 * joints * persons
        for k, width in enumerate(widths):
            body += [nn.Conv1d(channels, width, kernel, 1 if k == 0 else 2, kernel // 2), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*body, _Pooled())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Float[Tensor, "n 3 t joints persons"]) -> Float[Tensor, "n c"]:
        return self.head(self.body(x))


class _Recurrence(nn.Module):
    """A bidirectional GRU over the frames; the mean of its states."""

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(_OverTime()(x).mT)[0].mean(1)


@rebuildable
class MotionGRU(nn.Module):
    """A bidirectional GRU on the sequence of poses, its states averaged over time."""

    def __init__(self, joints: int = 15, persons: int = 1, classes: int = 8, hidden: int = 32, layers: int = 1) -> None:
        super().__init__()
        self.body = _Recurrence(3 * joints * persons, hidden, layers)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Float[Tensor, "n 3 t joints persons"]) -> Float[Tensor, "n c"]:
        return self.head(self.body(x))


class _GraphBlock(nn.Module):
    """Joints mixed by three fixed graphs with learned additions, then a convolution over time, and a shortcut."""

    def __init__(self, channels: int, width: int, graphs: Tensor, kernel: int, stride: int) -> None:
        super().__init__()
        self.register_buffer("graphs", graphs)
        self.added = nn.Parameter(torch.full_like(graphs, 1e-6))
        self.space = nn.Sequential(nn.Conv2d(len(graphs) * channels, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        time = nn.Conv2d(width, width, (kernel, 1), (stride, 1), (kernel // 2, 0))
        self.time = nn.Sequential(time, nn.BatchNorm2d(width))
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, (stride, 1))

    def forward(self, x: Float[Tensor, "n c t v"]) -> Float[Tensor, "n w s v"]:
        graphs = self.get_buffer("graphs") + self.added
        mixed = (x @ torch.cat(graphs.unbind(0), 1)).unflatten(3, graphs.shape[:2])
        return F.relu(self.time(self.space(mixed.movedim(3, 1).flatten(1, 2))) + self.shortcut(x))


class _Graph(nn.Module):
    """Graph blocks on each person; the mean over frames, joints and persons."""

    def __init__(self, parents: tuple[int, ...], widths: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        graphs, blocks, channels = _graphs(parents), [], 3
        for width in widths:
            blocks.append(_GraphBlock(channels, width, graphs, kernel, 2))
            channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        persons = x.shape[4]
        each = self.blocks(x.permute(0, 4, 1, 2, 3).flatten(0, 1)).mean((2, 3))
        return each.unflatten(0, (-1, persons)).mean(1)


def _graphs(parents: tuple[int, ...]) -> Float[Tensor, "3 v v"]:
    """Each joint itself, its children, and its parent; columns that are not empty sum to one."""
    inward = torch.zeros(len(parents), len(parents))
    for child, parent in enumerate(parents):
        if parent >= 0:
            inward[child, parent] = 1.0
    graphs = torch.stack((torch.eye(len(parents)), inward, inward.T))
    return graphs / graphs.sum(1, keepdim=True).clamp_min(1.0)


@rebuildable
class SkeletonGCN(nn.Module):
    """Spatial-temporal graph convolution with adaptive graphs (Shi et al., 2019, arXiv:1805.07694, without attention).

    ``parents`` is the tree of joints, -1 for a root. Every block halves the number of frames.
    """

    def __init__(
        self, parents: tuple[int, ...], classes: int = 8, widths: tuple[int, ...] = (16, 32), kernel: int = 5
    ) -> None:
        super().__init__()
        self.body = _Graph(tuple(parents), tuple(widths), kernel)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "n 3 t joints persons"]) -> Float[Tensor, "n c"]:
        return self.head(self.body(x))
