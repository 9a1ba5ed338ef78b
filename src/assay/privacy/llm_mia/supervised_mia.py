"""A classifier of members from features of texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.nets import MLP
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched
from assay.runtime.random import derive, seeded
from assay.training import Plan, State, fit

CLASSIFIERS = ("mlp", "mlp-big", "logreg")
HIDDEN = {"mlp": (250, 100, 10), "mlp-big": (500, 250, 100, 10)}


@dataclass(frozen=True)
class FittedSupervisedMIA:
    """``scaler_`` standardises features as those of the attack's training part, ``classifier_`` is the network or the
    logistic regression."""

    scaler_: StandardScaler
    classifier_: nn.Module | LogisticRegression
    attack: SupervisedMIA

    def score(self, x: Any) -> Float[Tensor, " n"]:
        """The logit of membership: (n,) float64 on the CPU. InputError where features are infinite or not
        as many as were fitted."""
        told = self.attack.told(x)
        if told.shape[1] != self.scaler_.n_features_in_:
            raise InputError(
                f"SupervisedMIA: {told.shape[1]} features; expected {self.scaler_.n_features_in_}, as fitted"
            )
        if not torch.isfinite(told).all():
            bad = int((~torch.isfinite(told)).any(1).sum())
            raise InputError(f"SupervisedMIA: features of {bad} of {len(told)} texts are infinite; expected finite")
        scaled = self.scaler_.transform(told.numpy())
        if isinstance(self.classifier_, LogisticRegression):
            return torch.from_numpy(self.classifier_.decision_function(scaled))
        return batched(self.classifier_, torch.from_numpy(scaled).float())[:, 0].double()


class _Stopping:
    """A hook of training that keeps the weights of the least validation loss, and ends it after ``patience`` epochs
    without a lower one."""

    def __init__(self, data: Data, per_epoch: int, patience: int) -> None:
        self.data, self.per_epoch, self.patience = data, per_epoch, patience
        self.least, self.waited = float("inf"), 0
        self.best: dict[str, Tensor] = {}

    def __call__(self, models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % self.per_epoch:
            return
        with torch.no_grad():
            loss = float(_entropy(models["model"], self.data.x, self.data.y))
        self.waited += 1
        if loss < self.least:
            self.least, self.waited, self.best = loss, 0, copy.deepcopy(models["model"].state_dict())
        if self.waited >= self.patience:
            state.total = state.step


def _entropy(net: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
    return F.binary_cross_entropy_with_logits(net(x)[:, 0], y.to(x.dtype))


@dataclass(frozen=True, kw_only=True)
class SupervisedMIA:
    """Learn to tell members by ``features`` (Wang et al., 2024, arXiv:2402.17012).

    ``fit(members, nonmembers, *, seed)`` -> fitted with ``score(x)``, higher is more likely a member.

    features: maps texts x to numbers (n, f), say ``partial(gradient_features, model)`` or FittedModelStealing.features;
    NaN counts as 0, rows with an infinity are left out of training, and the rest is standardised. ``clf``: a ReLU
    network with hidden layers of 250, 100 and 10 ("mlp"), 500 before them ("mlp-big"), or logistic regression
    ("logreg"). The networks minimise the cross-entropy by Adam at ``lr`` for at most ``epochs``, in batches of
    ``batch_size``; the weights of least loss on a ``validation`` share are kept, and ``patience`` epochs without
    a lower one end training. What is evaluated must share no text with what is fitted. InputError where features are
    unusable.
    """

    kind: ClassVar[str] = "function"

    features: Callable[[Any], Tensor]
    clf: Literal["mlp", "mlp-big", "logreg"] = "mlp"
    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3
    validation: float = 0.1
    patience: int = 10

    def __post_init__(self) -> None:
        if self.clf not in CLASSIFIERS:
            raise unknown("classifier of SupervisedMIA", self.clf, CLASSIFIERS)
        if min(self.patience, self.epochs) < 1 or not 0 < self.validation < 1:
            given = f"patience={self.patience}, epochs={self.epochs}, validation={self.validation}"
            raise InputError(f"SupervisedMIA: {given}; expected patience, epochs >= 1 and a share in (0, 1)")

    def told(self, x: Any) -> Float[Tensor, "n f"]:
        """The features of texts, NaN as 0."""
        found = self.features(x)
        if found.dim() != 2 or not len(found):
            raise InputError(f"SupervisedMIA: features {tuple(found.shape)}; expected (n, f), n >= 1")
        return found.detach().cpu().double().nan_to_num(posinf=torch.inf, neginf=-torch.inf)

    def fit(self, members: Any, nonmembers: Any, *, seed: int = 0) -> FittedSupervisedMIA:
        """Learn from texts that are known to be members and others that are known not to be."""
        inside, outside = self.told(members), self.told(nonmembers)
        if inside.shape[1] != outside.shape[1]:
            widths = f"{inside.shape[1]} features of members, {outside.shape[1]} of others"
            raise InputError(f"SupervisedMIA: {widths}; expected the same")
        rows = torch.cat((inside, outside))
        y = torch.cat((torch.ones(len(inside)), torch.zeros(len(outside)))).long()
        kept = torch.isfinite(rows).all(1)
        rows, y = rows[kept], y[kept]
        if not 0 < int(y.sum()) < len(y):
            raise InputError("SupervisedMIA: no member or no other text has finite features; expected some of each")
        scaler = StandardScaler().fit(rows.numpy())
        scaled = scaler.transform(rows.numpy())
        if self.clf == "logreg":
            return FittedSupervisedMIA(scaler, LogisticRegression(max_iter=1000).fit(scaled, y.numpy()), self)
        data = Data(
            torch.from_numpy(scaled).float(), y, ("other", "member"), (-torch.inf, torch.inf), "texts' features"
        )
        return FittedSupervisedMIA(scaler, self._network(data, seed), self)

    def _network(self, data: Data, seed: int) -> nn.Module:
        held, train = data.split(self.validation, seed=derive(seed, "validation"))
        with seeded(seed, "init"):
            start = MLP(data.shape, 1, HIDDEN[self.clf])
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, schedule="constant")
        stopping = _Stopping(held, -(-len(train) // self.batch_size), self.patience)

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            return _entropy(net, batch.x, batch.y)

        net = fit(start, train, objective, plan, seed=seed, hooks=[stopping])
        net.load_state_dict(stopping.best)
        return net
