"""A temperature for each sample, from how the prediction holds on transformed copies."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.calibrate.base import CalibrationMap, Calibrator, Outputs
from assay.calibrate.correctness import CorrectnessAwareLoss, top_confidence
from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import seeded, torch_rng
from assay.runtime.spec import rebuildable
from assay.training import Plan, State, fit

LOWEST, HIGHEST = 0.1, 10.0
LOSSES = ("ca", "ce", "mse")


class TemperatureNetwork(nn.Module):
    """Linear - ReLU - Linear to one temperature a sample in [0.1, 10]; it starts at 1 for every input.

    "smooth" runs a sigmoid between the ends on the logarithmic scale; "clamp", as the official code, cuts the output,
    which has no gradient outside.
    """

    def __init__(self, width: int, hidden: int, bound: Literal["smooth", "clamp"]) -> None:
        super().__init__()
        self.body, self.head, self.bound = nn.Linear(width, hidden).double(), nn.Linear(hidden, 1).double(), bound
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, float(bound == "clamp"))

    def forward(self, v: Float[Tensor, "n w"]) -> Float[Tensor, " n"]:
        return bounded(self.head(self.body(v).relu())[:, 0], self.bound)


def bounded(raw: Float[Tensor, " n"], bound: str) -> Float[Tensor, " n"]:
    """A temperature in [0.1, 10] from the network's output; see TemperatureNetwork."""
    if bound == "clamp":
        return raw.clamp(LOWEST, HIGHEST)
    return LOWEST * torch.exp(math.log(HIGHEST / LOWEST) * raw.sigmoid())


@rebuildable
class FittedCorrectnessAware(CalibrationMap):
    """Logits / T(x): ``body_`` (h, w), ``body_bias_`` (h,), ``head_`` (h,) and ``head_bias_`` are the network's.

    w is ``k`` times the number of ``views`` it was fitted on, and of the original where it is among the inputs.
    """

    body_: Tensor
    body_bias_: Tensor
    head_: Tensor
    head_bias_: Tensor

    def __init__(
        self, classes: int, k: int, hidden: int, bound: str, include_original: bool = False, views: int = 0
    ) -> None:
        super().__init__()
        self._classes, self.k, self.bound, self.include_original, self.views = (
            classes,
            k,
            bound,
            include_original,
            views,
        )
        width = k * (views + (include_original or not views))
        for name, shape in (("body_", (hidden, width)), ("body_bias_", (hidden,)), ("head_", (hidden,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("head_bias_", torch.zeros((), dtype=torch.float64))

    def learn(self, network: TemperatureNetwork) -> FittedCorrectnessAware:
        """This map with the weights of ``network``."""
        parts = (network.body.weight, network.body.bias, network.head.weight[0], network.head.bias[0])
        for mine, given in zip((self.body_, self.body_bias_, self.head_, self.head_bias_), parts, strict=True):
            mine.copy_(given.detach())
        return self

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return self._classes

    def temperature(self, outputs: Outputs) -> Float[Tensor, " n"]:
        """The temperature of each sample, float64 in [0.1, 10]. InputError for views other than it was fitted on."""
        given = 0 if outputs.views is None else len(outputs.views)
        if given != self.views:
            raise InputError(f"CorrectnessAwareCalibrator: {given} views; expected {self.views}, as it was fitted on")
        hidden = F.linear(calibrator_inputs(outputs, self.k, self.include_original), self.body_, self.body_bias_).relu()
        return bounded(hidden @ self.head_ + self.head_bias_, self.bound)

    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits of samples without views."""
        return self._calibrated(Outputs(logits))

    def transform(self, outputs: Outputs) -> Float[Tensor, "n c"]:
        """Logits / T(x) (n, c), float64: the predicted classes stay."""
        with torch.no_grad():
            return self._calibrated(outputs)

    def _calibrated(self, outputs: Outputs) -> Tensor:
        if outputs.classes != self.classes:
            raise InputError(f"{type(self).__name__}: {outputs.classes} logits; expected {self.classes}, as fitted")
        return outputs.logits.double() / self.temperature(outputs)[:, None]


@dataclass(frozen=True, kw_only=True)
class CorrectnessAwareCalibrator(Calibrator):
    """A temperature from the views' probabilities, trained for correctness (Liu et al., 2024, arXiv:2404.13016).

    The input of sample x is softmax(z(t x)) at the ``k`` likeliest classes of the original, in its order, for each view
    t of ``outputs.views`` (the code takes three: rotation, grey, colour jitter); the original's own probabilities join
    with ``include_original``, and are all there is where outputs have no views ("CA only"). One hidden layer of width
    ``hidden`` gives T(x) (see TemperatureNetwork for ``bound``); the confidence is max softmax(z / T(x)).

    ``loss`` "ca" is CorrectnessAwareLoss, ``balance`` its option; the same network under "ce" (cross-entropy of z / T)
    and "mse" (Brier's squared distance to the one-hot label, summed over classes) is what the paper compares with. Adam
    at ``lr`` over batches of ``batch_size`` (the code: 1e-4, 10 epochs); the weights of the epoch with the least loss
    on a random share ``holdout`` of the samples are kept (0: all samples train, the last weights are kept, as in the
    code), and those of the start, T = 1, where the loss, unbalanced, is worse on all samples together: what never rises
    there is top_brier under "ca", nll under "ce" and brier under "mse". Fit on samples that the model was not trained
    on: a set that is all right or all wrong teaches nothing, which a RuntimeWarning says. Raises InputError for options
    out of range and k above the number of classes.
    """

    objective: ClassVar[str] = "top_brier"

    k: int = 4
    hidden: int = 5
    include_original: bool = False
    bound: Literal["smooth", "clamp"] = "smooth"
    loss: Literal["ca", "ce", "mse"] = "ca"
    balance: bool = False
    epochs: int = 300
    batch_size: int = 1000
    lr: float = 1e-2
    holdout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        rates = 0 < self.lr < math.inf and 0 <= self.holdout < 1
        if min(self.k, self.hidden, self.epochs, self.batch_size) < 1 or not rates:
            given = f"k={self.k}, hidden={self.hidden}, epochs={self.epochs}, batch_size={self.batch_size}"
            rest = f"lr={self.lr}, holdout={self.holdout}; expected integers >= 1, a finite lr > 0, 0 <= holdout < 1"
            raise InputError(f"CorrectnessAwareCalibrator: {given}, {rest}")
        for what, value, known in (("bound", self.bound, ("smooth", "clamp")), ("loss", self.loss, LOSSES)):
            if value not in known:
                raise unknown(f"{what} of CorrectnessAwareCalibrator", str(value), known)

    def correct(self, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which predictions are right."""
        return logits.argmax(1) == y

    def criterion(
        self,
        logits: Float[Tensor, "n c"],
        temperature: Float[Tensor, " n"],
        y: Int[Tensor, " n"],
        correct: Bool[Tensor, " n"],
    ) -> Float[Tensor, ""]:
        """What training minimises over the temperatures."""
        if self.loss == "ca":
            return CorrectnessAwareLoss(balance=self.balance)(top_confidence(logits, temperature), correct)
        scaled = logits / temperature[:, None]
        if self.loss == "ce":
            return F.cross_entropy(scaled, y)
        return (scaled.softmax(1) - F.one_hot(y, logits.shape[1])).square().sum(1).mean()

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedCorrectnessAware:
        logits = outputs.logits.double()
        v = calibrator_inputs(outputs, self.k, self.include_original)
        correct = self.correct(logits, y)
        if correct.all() or not correct.any():
            which = "right" if correct.all() else "wrong"
            warnings.warn(f"CorrectnessAwareCalibrator: all {len(y)} samples are {which}", RuntimeWarning, stacklevel=4)
        names = tuple(map(str, range(outputs.classes)))
        data = Data(v, y, names, name="calibration", fields={"logits": logits, "correct": correct})
        with seeded(self.seed, "temperature-network"):
            start = TemperatureNetwork(v.shape[1], self.hidden, self.bound)
        trained = self._trained(start, data)
        judge = replace(self, balance=False)
        worse = judge._loss(trained, data) > judge._loss(start, data)
        count = 0 if outputs.views is None else len(outputs.views)
        fitted = FittedCorrectnessAware(outputs.classes, self.k, self.hidden, self.bound, self.include_original, count)
        return fitted.learn(start if worse else trained)

    def _trained(self, start: TemperatureNetwork, data: Data) -> TemperatureNetwork:
        """The best network of all epochs by the loss on the held-out share, or the last where there is none."""
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, schedule="constant")
        if not self.holdout or len(data) < 2:
            return _network(fit(start, data, self._objective, plan, seed=self.seed))
        order = torch.randperm(len(data), generator=torch_rng(self.seed, "calibration split"))
        held = min(max(round(self.holdout * len(data)), 1), len(data) - 1)
        kept, part = data[order[:held]], data[order[held:]]
        best, found = [math.inf], [start]

        def look(models: Mapping[str, nn.Module], state: State) -> None:
            if state.step % (state.total // self.epochs):
                return
            value = self._loss(models["model"], kept)
            if value < best[0]:
                best[0], found[0] = value, copy.deepcopy(_network(models["model"]))

        fit(start, part, self._objective, plan, seed=self.seed, hooks=[look])
        network = found[0]
        network.zero_grad(set_to_none=True)
        return network.eval()

    def _objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self.criterion(batch.fields["logits"], model(batch.x), batch.y, batch.fields["correct"])

    @torch.no_grad()
    def _loss(self, model: nn.Module, data: Data) -> float:
        return float(self.criterion(data.fields["logits"], model(data.x), data.y, data.fields["correct"]))


def calibrator_inputs(outputs: Outputs, k: int, include_original: bool = False) -> Float[Tensor, "n w"]:
    """Probabilities (n, w), float64, at the ``k`` likeliest classes of the original: view by view, in its order.

    The original comes first with ``include_original`` or where there are no views. InputError for k above the number
    of classes.
    """
    if not 1 <= k <= outputs.classes:
        raise InputError(f"CorrectnessAwareCalibrator: k={k}; expected 1 to {outputs.classes}, the number of classes")
    chosen = outputs.logits.topk(k, 1).indices
    sources = [outputs.logits] if include_original or outputs.views is None else []
    sources += [] if outputs.views is None else list(outputs.views)
    return torch.cat([z.double().softmax(1).gather(1, chosen) for z in sources], 1)


def _network(model: nn.Module) -> TemperatureNetwork:
    if not isinstance(model, TemperatureNetwork):
        raise TypeError(f"training gave {type(model).__name__}")
    return model
