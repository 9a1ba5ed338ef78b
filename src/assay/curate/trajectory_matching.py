"""Dataset distillation: images such that training on them moves a network as training on all the data does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor, nn

from assay.curate.expert_trajectories import Trajectories
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating, predict
from assay.runtime.random import Draws, derive, numpy_rng, torch_rng
from assay.subject import fresh
from assay.training import Plan, State, fit
from assay.training.engine import Augment

INITS = ("random", "representative")
CLOCK = Data(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), ("", " "), name="clock")


@dataclass(frozen=True)
class SyntheticSet:
    """Distilled images x_syn_ (m, ...), not bound to the range of images, with labels y_syn_ (m,); the rate lr_ at
    which they are to be trained on; history_ (iterations,), the loss of every iteration."""

    x_syn_: Float[Tensor, "m ..."]
    y_syn_: Int[Tensor, " m"]
    lr_: float
    history_: Float[Tensor, " i"]


class _Learned(nn.Module):
    """What is learned: the images and the rate."""

    def __init__(self, x: Tensor, lr: float) -> None:
        super().__init__()
        self.x, self.lr = nn.Parameter(x.clone()), nn.Parameter(torch.tensor(lr, dtype=x.dtype))


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching:
    """``fit(trajectories, data, *, seed)`` -> SyntheticSet of ``ipc`` images a class (Cazenavette et al., 2022,
    arXiv:2203.11932, algorithm 1, "MTT").

    Every iteration draws an expert and a start epoch t below ``max_start``, takes ``syn_steps`` steps of gradient
    descent on the images from the expert's weights at t, and descends ||student - theta_{t+M}||^2 / ||theta_t -
    theta_{t+M}||^2 in the images (rate ``lr_img``) and in the rate of the student's steps, which starts at
    ``lr_start`` (rate ``lr_lr``; never below 1e-6), by SGD with momentum 0.5; M is ``expert_epochs``. ``batch_syn``
    images make a step (None: all). ``augment`` is applied to them (see SiameseAugmentation). Only the last
    ``keep_graph`` gradients of the student are differentiated (None: all; memory grows with them). ``init``: "random"
    real images, or "representative" ones, the nearest to the ``ipc`` k-means centres of the logits of a trained expert
    in each class. Students train on the device of the trajectories' model, wherever the weights are kept. Raises
    InputError for trajectories shorter than max_start - 1 + M or of a network for other data, more images than a class
    has, and losses that are not finite.
    """

    kind: ClassVar[str] = "function"

    ipc: int = 1
    expert_epochs: int = 2
    syn_steps: int = 20
    max_start: int = 20
    iterations: int = 5000
    lr_start: float = 0.01
    lr_img: float = 100.0
    lr_lr: float = 1e-5
    init: Literal["random", "representative"] = "random"
    batch_syn: int | None = None
    augment: Augment | None = None
    keep_graph: int | None = None

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.init not in INITS:
            raise unknown(f"init of {who}", str(self.init), INITS)
        counts = {"ipc": self.ipc, "expert_epochs": self.expert_epochs, "max_start": self.max_start}
        counts |= {"batch_syn": self.batch_syn or 1, "keep_graph": self.keep_graph or 1}
        if min(counts.values()) < 1 or min(self.syn_steps, self.iterations) < 0:
            raise InputError(
                f"{who}: {counts}, syn_steps={self.syn_steps}, iterations={self.iterations}; expected at least 1, "
                "the last two at least 0"
            )
        rates = {"lr_start": self.lr_start, "lr_img": self.lr_img, "lr_lr": self.lr_lr}
        if not all(0 < r < float("inf") for r in rates.values()):
            raise InputError(f"{who}: {rates}; expected finite rates > 0")

    def fit(self, trajectories: Trajectories, data: Data, *, seed: int) -> SyntheticSet:
        """The distilled images, in the order of their classes."""
        who = type(self).__name__
        check_inputs(who, data.x, None, data.bounds)
        check_labels(who, data.y, len(data), len(data.classes))
        if self.max_start - 1 + self.expert_epochs > trajectories.epochs:
            raise InputError(
                f"{who}: max_start={self.max_start}, expert_epochs={self.expert_epochs} for {trajectories.epochs} "
                "saved epochs; expected max_start - 1 + expert_epochs at most as many"
            )
        check_fit(who, trajectories, data)
        rows, device = self.initial(trajectories, data, seed=seed), device_of(trajectories.model)
        y = data.y[rows].to(device)
        history: list[float] = []

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            if not isinstance(model, _Learned):
                raise TypeError(f"{who} learns images, not a {type(model).__name__}")
            return self.objective(trajectories, model.x, y, model.lr, seed=derive(seed, "iteration", state.step))

        def keep(models: Mapping[str, nn.Module], state: State) -> None:
            learned = models["model"]
            assert isinstance(learned, _Learned)
            learned.lr.data.clamp_(min=1e-6)
            history.append(state.log[-1]["model"])

        plan = Plan(steps=self.iterations, batch_size=1, optimizer=self._optimizer, schedule="constant")
        start = _Learned(data.x[rows], self.lr_start).to(device)
        learned = fit(start, CLOCK, objective, plan, seed=seed, hooks=[keep])
        assert isinstance(learned, _Learned)
        return SyntheticSet(learned.x.detach().cpu(), y.cpu(), float(learned.lr.detach()), torch.tensor(history))

    def _optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        x, lr = parameters
        return torch.optim.SGD([{"params": [x], "lr": self.lr_img}, {"params": [lr], "lr": self.lr_lr}], momentum=0.5)

    def initial(self, trajectories: Trajectories, data: Data, *, seed: int) -> Int[Tensor, " m"]:
        """Positions in ``data`` of the images that the synthetic ones start from."""
        counts = data.y.bincount(minlength=len(data.classes))
        if int(counts.min()) < self.ipc:
            raise InputError(
                f"{type(self).__name__}: a class of {data.name!r} has {int(counts.min())} images; expected at least "
                f"{self.ipc}"
            )
        if self.init == "representative":
            return representative(trajectories, data, self.ipc, seed=seed)
        order = torch.randperm(len(data), generator=torch_rng(seed, "start"))
        return torch.cat([order[data.y[order] == c][: self.ipc] for c in range(len(data.classes))])

    def objective(
        self, trajectories: Trajectories, x: Tensor, y: Tensor, lr: Tensor, *, seed: int
    ) -> Float[Tensor, ""]:
        """The matching loss of one iteration."""
        start, goals, epoch = self.drawn(trajectories, seed=seed)
        start = self.perturbed(trajectories, start, seed=seed)
        students = self.students(trajectories, start, x, y, lr, epoch, seed=seed)
        far = [(start - goal).square().sum() for goal in goals]
        near = [(s - goal).square().sum() for s, goal in zip(students, goals, strict=True)]
        return sum(w * a / b for w, a, b in zip(self.weights(), near, far, strict=True) if w) + 0 * lr

    def drawn(self, trajectories: Trajectories, *, seed: int) -> tuple[Tensor, Tensor, int]:
        """An expert's weights at an epoch t, those of the M epochs after it, and t."""
        rng = numpy_rng(seed, "draw")
        one = trajectories.params_[int(rng.integers(len(trajectories.params_)))]
        t = int(rng.integers(self.max_start))
        near = one[t : t + 1 + self.expert_epochs].to(device_of(trajectories.model))
        return near[0], near[1:], t

    def perturbed(self, trajectories: Trajectories, start: Tensor, *, seed: int) -> Tensor:
        """Where the student starts: at the expert's weights."""
        return start

    def weights(self) -> list[float]:
        """What the distances to theta_{t+1}, ..., theta_{t+M} count: the last alone."""
        return [0.0] * (self.expert_epochs - 1) + [1.0]

    def factor(self, epoch: int) -> float:
        """What the student's loss is multiplied by, for a start at ``epoch``."""
        return 1.0

    def buffered(self, buffer: Tensor | None, gradient: Tensor) -> Tensor:
        """The direction of a step of the student: its gradient."""
        return gradient

    def students(
        self, trajectories: Trajectories, theta: Tensor, x: Tensor, y: Tensor, lr: Tensor, epoch: int, *, seed: int
    ) -> list[Tensor]:
        """The student's flat weights beside each of the M epochs, with gradients to x and lr."""
        order = self._batches(len(x), seed)
        buffer: Tensor | None = None
        path = [theta.clone().requires_grad_(True)]
        for step, rows in enumerate(order):
            shown = x[rows]
            if self.augment is not None:
                shown = self.augment(shown, Draws(derive(seed, step), "augment", rows))
            loss = self.factor(epoch) * F.cross_entropy(trajectories.logits(path[-1], shown), y[rows])
            kept = self.keep_graph is None or step >= self.syn_steps - self.keep_graph
            (gradient,) = torch.autograd.grad(loss, path[-1], create_graph=kept)
            buffer = self.buffered(buffer, gradient)
            path.append(path[-1] - lr * buffer)
        each = self.syn_steps // self.expert_epochs
        return [path[each * j] for j in range(1, self.expert_epochs)] + [path[-1]]

    def _batches(self, m: int, seed: int) -> list[Tensor]:
        """The images of each step: all, or parts of one random order after the other."""
        size = self.batch_syn or m
        rounds = -(-self.syn_steps // -(-m // size)) if self.syn_steps else 0
        orders = [torch.randperm(m, generator=torch_rng(seed, "order", k)).split(size) for k in range(rounds)]
        return [part for order in orders for part in order][: self.syn_steps]


def check_fit(who: str, trajectories: Trajectories, data: Data) -> None:
    """InputError unless the trajectories' network takes the samples and has a logit for each class."""
    device = device_of(trajectories.model)
    try:
        with evaluating(trajectories.model), torch.no_grad():
            logits = trajectories.logits(trajectories.params_[0, 0].to(device), data.x[:1].to(device))
    except RuntimeError as error:
        raise InputError(f"{who}: samples {data.shape}; expected those of the trajectories' network") from error
    if logits.dim() != 2 or logits.shape[1] < len(data.classes):
        given, classes = tuple(logits.shape), len(data.classes)
        raise InputError(f"{who}: the trajectories' network gives {given} for a sample; expected {classes} logits")


def representative(trajectories: Trajectories, data: Data, ipc: int, *, seed: int) -> Int[Tensor, " m"]:
    """Positions of the real images nearest to the ``ipc`` k-means centres of each class's logits, under one expert at
    its last epoch (Shen et al., 2023, arXiv:2310.10541, section 3.3); distinct, in the order of the classes."""
    rng = numpy_rng(seed, "expert")
    model = fresh(trajectories.model, seed=seed)
    last = trajectories.params_[int(rng.integers(len(trajectories.params_))), -1]
    model.load_state_dict(trajectories.unflat(last))
    logits, rows = predict(model, data.x).double(), list[int]()
    for c in range(len(data.classes)):
        own = (data.y == c).nonzero()[:, 0]
        if len(own) < ipc:
            raise InputError(f"representative: class {c} has {len(own)} images; expected at least {ipc}")
        means = KMeans(ipc, n_init=3, random_state=derive(seed, "means", c) % 2**31).fit(logits[own].numpy())
        distance = torch.cdist(torch.from_numpy(means.cluster_centers_), logits[own])
        for near in distance:
            near[torch.isin(own, torch.tensor(rows, dtype=torch.int64))] = torch.inf
            rows.append(int(own[near.argmin()]))
    return torch.tensor(rows)


def evaluate_distilled(
    x: Float[Tensor, "m ..."],
    y: Int[Tensor, " m"],
    lr: float,
    model: nn.Module,
    test: Data,
    *,
    repeats: int = 5,
    steps: int = 1000,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    augment: Augment | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation, over ``repeats`` new networks of ``model``'s architecture, of the accuracy on
    ``test`` after ``steps`` full-batch steps of SGD on (x, y); the rate falls to a tenth half-way (Cazenavette et al.,
    2022, as in the official code). Another architecture than the experts' asks how well the images transfer.
    """
    check_inputs("evaluate_distilled", x)
    check_labels("evaluate_distilled", y, len(x), len(test.classes))
    if repeats < 1 or steps < 1 or not lr > 0:
        raise InputError(f"evaluate_distilled: repeats={repeats}, steps={steps}, lr={lr}; expected numbers > 0")
    data = Data(x, y, test.classes, bounds=(-float("inf"), float("inf")), name="distilled")
    found = []
    for k in range(repeats):
        net = fresh(model, seed=derive(seed, "evaluation", k))
        for part, rate in ((steps // 2, lr), (steps - steps // 2, 0.1 * lr)):
            optimizer = partial(torch.optim.SGD, lr=rate, momentum=momentum, weight_decay=weight_decay)
            plan = Plan(steps=part, batch_size=len(data), optimizer=optimizer, schedule="constant")
            net = fit(net, data, _cross_entropy, plan, seed=derive(seed, "evaluation", k, rate), augment=augment)
        found.append((predict(net, test.x).argmax(1) == test.y).double().mean())
    each = torch.stack(found)
    return float(each.mean()), float(each.std(correction=0))


def _cross_entropy(model: nn.Module, batch: Batch, state: State) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)
