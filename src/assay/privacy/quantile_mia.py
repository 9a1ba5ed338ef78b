"""A quantile of the score, learned from the input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.nets import MLP
from assay.privacy.attack_p import check_rate, p_values
from assay.privacy.base import Inference, Reference, outputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, predict
from assay.runtime.random import derive, seeded
from assay.subject import fresh
from assay.training import Plan, State, fit

LOSSES = ("gaussian", "pinball")
FLOOR = 1e-3  # of the standardised score: the least deviation that the regressor may claim


def hinge_confidence(where: str, model: nn.Module, data: Data, batch_size: int) -> Float[Tensor, " n"]:
    """The logit of the label less the highest other one, float64."""
    logits, y = outputs(where, model, data, batch_size), data.y[:, None]
    return logits.gather(1, y)[:, 0] - logits.scatter(1, y, -torch.inf).amax(1)


def pinball(score: Float[Tensor, " n"], quantile: Float[Tensor, " n"], level: float) -> Float[Tensor, ""]:
    """Mean pinball loss, least where a share ``level`` of the scores lies below ``quantile``."""
    gap = score - quantile
    return torch.maximum(level * gap, (level - 1) * gap).mean()


@dataclass(frozen=True)
class Regressor:
    """The learned quantile of a target: ``network_`` on standardised scores, their ``mean_`` and ``deviation_``, and
    the excesses ``null_`` of the non-members that were held out."""

    network_: nn.Module
    mean_: Tensor
    deviation_: Tensor
    null_: Tensor


@dataclass(frozen=True)
class FittedQuantileMIA:
    """``data_`` holds non-members in two parts: what the regressors learn from, and what their level is set on.

    ``regressors_`` has the regressor of every target that was scored, by the hash of its scores on these, on which
    alone it depends.
    """

    data_: tuple[Data, Data]
    start_: nn.Module
    attack: QuantileMIA
    seed: int
    regressors_: dict[str, Regressor] = field(default_factory=dict)

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference: the score's excess over what its input lets one expect of a non-member.

        "gaussian": (s - mean(x)) / deviation(x); "pinball": s - quantile(x), in deviations of all s.
        """
        return self._excess(self.regressor(model), model, data)

    def members(self, model: nn.Module, data: Data, alpha: float) -> Bool[Tensor, " n"]:
        """Who is taken for a member at a false-positive rate of ``alpha``; InputError outside (0, 1)."""
        check_rate("QuantileMIA", alpha)
        known = self.regressor(model)
        return p_values(known.null_, self._excess(known, model, data)) <= alpha

    def regressor(self, model: nn.Module) -> Regressor:
        """The regressor for this target, trained where there is none yet."""
        scores = [self._confidence(model, part) for part in self.data_]
        name = hashlib.sha256(torch.cat(scores).numpy().tobytes()).hexdigest()
        if name not in self.regressors_:
            self.regressors_[name] = self._learn(model, scores[0])
        return self.regressors_[name]

    def _learn(self, model: nn.Module, scores: Float[Tensor, " n"]) -> Regressor:
        learn, held = self.data_
        mean, deviation = scores.mean(), scores.std().clamp_min(1e-12)
        table = replace(learn, fields={"score": ((scores - mean) / deviation).float()})

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            return self.attack.loss_of(net(batch.x), batch.fields["score"])

        network = fit(self.start_, table, objective, self.attack.plan(), seed=derive(self.seed, "quantile"))
        known = Regressor(network, mean, deviation, torch.empty(0))
        return replace(known, null_=self._excess(known, model, held))

    def _confidence(self, model: nn.Module, data: Data) -> Tensor:
        return hinge_confidence("QuantileMIA", model, data, self.attack.batch_size)

    def _excess(self, known: Regressor, model: nn.Module, data: Data) -> Tensor:
        score = (self._confidence(model, data) - known.mean_) / known.deviation_
        raw = predict(known.network_, data.x, batch_size=self.attack.batch_size).double()
        if self.attack.loss == "pinball":
            return score - raw[:, 0]
        return (score - raw[:, 0]) / (F.softplus(raw[:, 1]) + FLOOR)


@dataclass(frozen=True, kw_only=True)
class QuantileMIA(Inference):
    """Compare a sample's score with the quantile that non-members like it have, without a shadow model (Bertran et al.,
    2023, arXiv:2307.03694).

    A regressor from the input x alone is trained on non-members' scores under the target, s = the label's logit less
    the highest other (their hinge score). ``loss`` "gaussian": mean and deviation by maximum likelihood, which gives
    every quantile at once; "pinball": the (1 - ``alpha``)-quantile alone. ``reference.data`` must be unseen by the
    target; the regressor has ``reference.model``'s architecture with a linear layer on its outputs, else an MLP with
    ``hidden`` units. It is trained at the first score of each target (``epochs``, ``lr``, ``weight_decay``).

    A learned quantile need not be exceeded by a share alpha of fresh samples. So a share ``held`` of the non-members,
    drawn at random, stays out of the training, and ``members`` puts the threshold where conformal p-values on them say
    (Romano et al., 2019, arXiv:1905.03222): an addition of ours, which keeps the false-positive rate at most alpha.
    """

    loss: Literal["gaussian", "pinball"] = "gaussian"
    alpha: float = 0.01
    held: float = 0.25
    hidden: tuple[int, ...] = (64,)
    epochs: int = 20
    lr: float = 1e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss of QuantileMIA", str(self.loss), LOSSES)
        check_rate("QuantileMIA", self.alpha)
        if not 0 < self.held < 1:
            raise InputError(f"QuantileMIA: held={self.held}; expected a share in (0, 1)")

    def plan(self) -> Plan:
        """How the regressor is trained."""
        return Plan(epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay, optimizer="adamw")

    def loss_of(self, raw: Float[Tensor, "n 2"], score: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The regressor's loss on standardised scores."""
        if self.loss == "pinball":
            return pinball(score, raw[:, 0], 1 - self.alpha)
        deviation = F.softplus(raw[:, 1]) + FLOOR
        return ((score - raw[:, 0]).square() / (2 * deviation.square()) + deviation.log()).mean()

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedQuantileMIA:
        given = self.given(reference)
        held, learn = given.data.split(self.held, seed=derive(seed, "held"))
        if len(learn) < 2:
            raise InputError(
                f"QuantileMIA: {len(learn)} reference sample to learn from; expected more, or a lower held"
            )
        with seeded(seed, "regressor"):
            if given.model is None:
                start: nn.Module = MLP(given.data.shape, 2, self.hidden)
            else:
                body = fresh(given.model, seed=derive(seed, "start"))
                width = predict(body, given.data.x[:1]).shape[1]
                start = nn.Sequential(body, nn.Linear(width, 2).to(device_of(body)))
        return FittedQuantileMIA((learn, held), start, self, seed)
