"""A representation of motions from unlabelled clips: momentum contrast between two views of the skeleton."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.nets import MotionGRU, SkeletonGCN
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng
from assay.training import Plan, State, fit


def crop_and_resize(x: Float[Tensor, "n 3 t v m"], share: Float[Tensor, " n"], start: Float[Tensor, " n"]) -> Tensor:
    """The window of ``share`` of the frames of each clip, ``start`` of the way from first to last, back to t frames."""
    t = x.shape[2]
    length = share * (t - 1)
    place = start[:, None] * (t - 1 - length)[:, None] + length[:, None] * torch.linspace(0, 1, t)
    low = place.floor().long().clamp(0, max(t - 2, 0))
    part = (place - low).to(x)[:, None, :, None, None]
    rows = torch.arange(len(x))[:, None]
    frames = x.transpose(1, 2)
    left, right = frames[rows, low].transpose(1, 2), frames[rows, (low + 1).clamp_max(t - 1)].transpose(1, 2)
    return left + part * (right - left)


def corrupt_joints(x: Float[Tensor, "n 3 t v m"], share: float, draws: Draws) -> Float[Tensor, "n 3 t v m"]:
    """``share`` of the joints of each clip put to 0 or, as likely, mixed by a random matrix with entries in [-1, 1]."""
    joints = x.shape[3]
    hit = draws.uniform(joints).argsort(1).argsort(1) < round(share * joints)
    mix = (2 * draws.uniform(3, 3) - 1) * (draws.uniform(1, 1) < 0.5)
    return torch.where(hit[:, None, None, :, None], torch.einsum("ncd,ndtvm->nctvm", mix.to(x), x), x)


def projection(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """``z`` standardised over the batch, then scaled to length 1."""
    return F.normalize(F.batch_norm(z, None, None, training=True), dim=1)


class _Contrast(nn.Module):
    """The two encoders with their projections, the slower copies that give keys, and the queues of keys."""

    def __init__(self, views: tuple[nn.Module, nn.Module], dim: int, queue: int, generator: torch.Generator) -> None:
        super().__init__()
        self.queries = nn.ModuleList(views)
        self.keys = copy.deepcopy(self.queries).requires_grad_(False)
        self.register_buffer("queues", F.normalize(torch.randn(2, queue, dim, generator=generator), dim=2))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The keys' weights move toward the queries'."""
        for key, query in zip(self.keys.parameters(), self.queries.parameters(), strict=True):
            key.lerp_(query, 1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "2 n d"]) -> None:
        """The newest keys take the place of the oldest."""
        queues, place = self.get_buffer("queues"), self.get_buffer("place")
        queues[:, (place + torch.arange(keys.shape[1])) % queues.shape[1]] = keys
        place += keys.shape[1]


@dataclass(frozen=True, kw_only=True)
class SkeletonMoCo:
    """An encoder of motions from cross-view momentum contrast (Lu et al., 2023, arXiv:2308.05681, their first stage).

    After Thoker et al. (2021, arXiv:2108.03656) and MoCo (He et al., 2020, arXiv:1911.05722): a bidirectional GRU sees
    a clip as a sequence, a graph network as a graph; the query of each is to match the key of the *other* for another
    augmentation of the clip against ``queue`` keys of other clips, by cross-entropy at ``temperature``. Keys come from
    copies of the networks that follow with ``momentum``. Augmentations: a window of ``crop`` of the frames resized to
    all, a shear with entries up to ``shear``, ``corrupt`` of the joints put to 0 or mixed.

    The authors: 3 x 1024 states, dim 128, queue 16384, momentum 0.999, 451 epochs of SGD from 0.01 divided by ten after
    160 and 351, crops from 0.1 (at least 64 frames), shear 1, 0.6 of the joints. The defaults here are for a few
    hundred clips, on which that collapses to a constant: projections are standardised over the batch, the optimiser is
    Adam with its rate falling along a cosine, and the queue is short enough to hold no older key of the same clip.
    """

    epochs: int = 60
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4
    dim: int = 64
    queue: int = 128
    momentum: float = 0.95
    temperature: float = 0.07
    hidden: int = 32
    layers: int = 1
    widths: tuple[int, ...] = (16, 32)
    crop: tuple[float, float] = (0.5, 1.0)
    shear: float = 0.3
    corrupt: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1] <= 1 or not 0 <= self.corrupt <= 1 or self.shear < 0:
            given = f"crop={self.crop}, shear={self.shear}, corrupt={self.corrupt}"
            raise InputError(f"SkeletonMoCo: {given}; expected 0 < low <= high <= 1, at least 0, and a share")
        if self.queue < self.batch_size or not 0 <= self.momentum <= 1 or not self.temperature > 0:
            given = f"queue={self.queue}, momentum={self.momentum}, temperature={self.temperature}"
            raise InputError(f"SkeletonMoCo: {given}; expected at least a batch, a share, and above 0")

    def augment(self, x: Float[Tensor, "n 3 t v m"], draws: Draws) -> Float[Tensor, "n 3 t v m"]:
        """One random view of each clip."""
        low, high = self.crop
        window = draws.uniform(2)
        x = crop_and_resize(x, low + (high - low) * window[:, 0], window[:, 1])
        lean = self.shear * (2 * draws.uniform(3, 3) - 1) * (1 - torch.eye(3)) + torch.eye(3)
        return corrupt_joints(torch.einsum("ncd,ndtvm->nctvm", lean.to(x), x), self.corrupt, draws)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The two cross-view losses of one batch; moves keys and queues on."""
        assert isinstance(model, _Contrast)
        views = [self.augment(batch.x, state.draws(f"view {k}", batch.index)) for k in range(2)]
        model.follow(self.momentum)
        queries = [projection(net(views[0])) for net in model.queries]
        with torch.no_grad():
            keys = [projection(net(views[1])) for net in model.keys]
        loss = torch.zeros(())
        for query, other in ((0, 1), (1, 0)):
            match = (queries[query] * keys[other]).sum(1, keepdim=True)
            logits = torch.cat((match, queries[query] @ model.get_buffer("queues")[other].clone().T), 1)
            loss = loss + F.cross_entropy(logits / self.temperature, torch.zeros(len(logits), dtype=torch.int64))
        model.enqueue(torch.stack(keys))
        return loss

    def views(self, parents: tuple[int, ...], persons: int) -> tuple[nn.Module, nn.Module]:
        """The networks of the two views; each has a ``body``, which gives features, and projects to ``dim`` values."""
        sequence = MotionGRU(len(parents), persons, self.dim, self.hidden, self.layers)
        return sequence, SkeletonGCN(parents, self.dim, self.widths)

    def fit_encoder(
        self, x: Float[Tensor, "n 3 t joints persons"], parents: tuple[int, ...], *, seed: int
    ) -> nn.Module:
        """The body of the second view, which maps motions to features (n, d), learned from the unlabelled ``x``.

        ``parents`` is the tree of joints. InputError unless x are finite motions of that tree.
        """
        check_inputs("SkeletonMoCo", x)
        if x.dim() != 5 or x.shape[1] != 3 or x.shape[3] != len(parents):
            expected = f"(n, 3, t, {len(parents)}, persons)"
            raise InputError(f"SkeletonMoCo: motions of shape {tuple(x.shape)}; expected {expected}")
        with seeded(seed, "encoders"):
            start = _Contrast(self.views(parents, x.shape[4]), self.dim, self.queue, torch_rng(seed, "queues"))
        top = float(x.abs().max())
        unlabelled = Data(x.detach(), torch.zeros(len(x), dtype=torch.int64), ("motion", "none"), (-top, top))
        learned = fit(start, unlabelled, self.objective, self.plan(), seed=seed)
        assert isinstance(learned, _Contrast)
        body = learned.queries[1].body
        assert isinstance(body, nn.Module)
        return body

    def plan(self) -> Plan:
        """Adam, its rate falling along a cosine."""
        return Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=self.weight_decay)
