"""Adaptive smoothing: a mixture whose weight a small network chooses for each input."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.balls import Linf
from assay.attacks.base import Attack
from assay.data import Batch, Data
from assay.defenses.mixed_classifier import check_frozen, log_mixture
from assay.defenses.mixture_attack import Deceive, RandomisedPGD, TwoOutputs, WithGamma
from assay.detect.layers import captured
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.runtime.spec import rebuildable
from assay.training import Plan, State, fit

LIKELIHOOD_FLOOR = 1e-30  # of a weight, below which its logarithm has no slope


@rebuildable
class AdaptiveMixedClassifier(TwoOutputs):
    """log((1 - a(x)) softmax(s_g g(x)) + a(x) softmax(s_h h(x))) with a(x) from a ``MixingNet`` (Bai et al., 2023,
    arXiv:2301.12554, section 4.1): log-probabilities (n, c).

    The network reads both models at the two depths that ``std_layers`` and ``robust_layers`` name (modules of theirs);
    without names, each model has ``features(x) -> (logits, [first, second])``. Its number gamma is normalised over
    samples by batch norm without parameters, times ``gamma_scale`` plus ``gamma_bias``; a = sigmoid(gamma), brought
    into ``alpha_range`` in evaluation mode. While training, gamma is clamped to its batch's mean +- 0.6 deviations and
    scaled by 2 and 0.4, as in the official code, which has (2, 1.3) or (3, 20) in evaluation. ``gamma_momentum`` is
    that of the normalisation: in a training of fewer than some hundred steps the default lags behind the network.
    Gradients go through a(x), as an adaptive attacker's would; ``policy_graph`` False cuts them, which hides
    vulnerability and serves for comparison. A weight of at least 1/2 is needed for any certificate.
    """

    training_scale: ClassVar[tuple[float, float]] = (2.0, 0.4)

    def __init__(
        self,
        std_model: nn.Module,
        robust_model: nn.Module,
        mixing_net: nn.Module,
        alpha_range: tuple[float, float] = (0.5, 1.0),
        gamma_scale: float = 2.0,
        gamma_bias: float = 1.3,
        gamma_momentum: float = 0.01,
        std_scale: float = 1.0,
        robust_scale: float = 1.0,
        std_layers: tuple[str, ...] = (),
        robust_layers: tuple[str, ...] = (),
        policy_graph: bool = True,
    ) -> None:
        super().__init__()
        low, high = alpha_range
        if not 0 <= low <= high <= 1:
            raise InputError(f"AdaptiveMixedClassifier: alpha_range is {alpha_range}; expected 0 <= low <= high <= 1")
        if not (std_scale > 0 and robust_scale > 0 and gamma_scale > 0):
            found = f"scales {std_scale}, {robust_scale} and gamma_scale {gamma_scale}"
            raise InputError(f"AdaptiveMixedClassifier: {found}; expected all above 0")
        for model, layers in ((std_model, std_layers), (robust_model, robust_layers)):
            missing = [n for n in layers if n not in dict(model.named_modules())]
            if missing or len(layers) not in (0, 2):
                raise InputError(f"AdaptiveMixedClassifier: layers {layers}; expected the names of two of the model's")
        self.std_model, self.robust_model, self.mixing_net = std_model, robust_model, mixing_net
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=gamma_momentum)
        self.alpha_range, self.gamma_scale, self.gamma_bias = (low, high), gamma_scale, gamma_bias
        self.std_scale, self.robust_scale, self.policy_graph = std_scale, robust_scale, policy_graph
        self.std_layers, self.robust_layers = tuple(std_layers), tuple(robust_layers)

    def train(self, mode: bool = True) -> AdaptiveMixedClassifier:
        """Training mode of the mixing network and its normalisation; the base models stay as they are."""
        self.training = mode
        self.mixing_net.train(mode)
        self.norm.train(mode)
        if not mode:
            self.std_model.eval()
            self.robust_model.eval()
        return self

    def both(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
        """Log-probabilities (n, c), and the log-odds gamma (n,) of the weight before it is brought into its range."""
        check_frozen(self.std_model, self.robust_model)
        g, first_g, second_g = _seen(self.std_model, self.std_layers, x)
        h, first_h, second_h = _seen(self.robust_model, self.robust_layers, x)
        gamma = self._gamma(torch.cat((first_g, first_h), 1), torch.cat((second_g, second_h), 1))
        low, high = (0.0, 1.0) if self.training else self.alpha_range
        alpha, rest = low + (high - low) * gamma.sigmoid(), (1 - high) + (high - low) * (-gamma).sigmoid()
        logs = [w.clamp_min(LIKELIHOOD_FLOOR).log()[:, None] for w in (rest, alpha)]
        log_g, log_h = (self.std_scale * g).log_softmax(1), (self.robust_scale * h).log_softmax(1)
        return log_mixture(log_g, log_h, *logs), gamma

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.both(x)[0]

    def alpha(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The weight of the robust model for each input, in ``alpha_range``, in evaluation mode."""
        low, high = (0.0, 1.0) if self.training else self.alpha_range
        return low + (high - low) * self.both(x)[1].sigmoid()

    def detached(self) -> AdaptiveMixedClassifier:
        """The same mixture to attackers that do not see through its weight."""
        other = copy.copy(self)
        other.policy_graph = False
        return other

    def fit(self, data: Data, *, seed: int, training: MixingTraining | None = None) -> AdaptiveMixedClassifier:
        """A copy with a trained mixing network; see ``MixingTraining``, whose defaults are used where none is given."""
        return (MixingTraining() if training is None else training).fit(self, data, seed=seed)

    def _gamma(self, first: Tensor, second: Tensor) -> Float[Tensor, " n"]:
        if self.training and len(first) < 2:
            raise InputError("AdaptiveMixedClassifier: a batch of one sample in training; expected at least two")
        if not self.policy_graph:
            first, second = first.detach(), second.detach()
        gamma = self.mixing_net(first, second)
        scale, bias = self.training_scale if self.training else (self.gamma_scale, self.gamma_bias)
        if self.training:
            mean, spread = float(gamma.detach().mean()), 0.6 * float(gamma.detach().std())
            gamma = gamma.clamp(mean - spread, mean + spread)
        return self.norm(gamma[:, None])[:, 0] * scale + bias


def _seen(model: nn.Module, layers: tuple[str, ...], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and the features at two depths."""
    if not layers:
        given: Any = model  # a model that states ``features`` instead of having its layers named
        logits, (first, second) = given.features(x)
        return logits, first, second
    with captured(model, layers) as caught:
        logits = model(x)
    return logits, caught[layers[0]], caught[layers[1]]


@dataclass(frozen=True, kw_only=True)
class MixingTraining:
    """Train the mixing network to tell attacked inputs from clean ones (Bai et al., 2023, arXiv:2301.12554, section
    4.3): a sample's loss is c_bce BCE(gamma, label) + c_ce CE(f, y) + c_prod BCE CE.

    Every batch holds clean inputs (label 0: use the accurate model; ``clean_weight`` each) and the same under
    ``attack`` on the whole mixture, by gradients through its weight too (label 1); of the attack's objective a share
    drawn uniformly up to ``deception`` for each sample is to lower the weight. ``constants`` are (c_bce, c_ce, c_prod),
    here the official code's for CIFAR-10; (1.5, 0, 0.2) for CIFAR-100. The base models are frozen.
    ``attacked`` (the rows of ``data`` under attacks made before, with their labels 0 or 1 in ``attacked_labels``) joins
    every batch. Returns a copy; InputError for a ``model`` that is no AdaptiveMixedClassifier.
    """

    kind: ClassVar[str] = "function"

    attack: Attack = RandomisedPGD(ball=Linf(8 / 255), steps=20)
    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 64
    weight_decay: float = 1e-5
    constants: tuple[float, float, float] = (1.0, 0.5, 0.1)
    clean_weight: float = 2.0
    deception: float = 0.4

    def __post_init__(self) -> None:
        if min(self.constants) < 0 or not self.clean_weight > 0 or not 0 <= self.deception <= 1:
            found = f"constants={self.constants}, clean_weight={self.clean_weight}, deception={self.deception}"
            raise InputError(f"MixingTraining: {found}; expected none below 0, a weight above 0, a share in [0, 1]")

    def fit(
        self,
        model: nn.Module,
        data: Data,
        *,
        seed: int,
        attacked: Tensor | None = None,
        attacked_labels: Tensor | None = None,
    ) -> AdaptiveMixedClassifier:
        """The trained mixture."""
        check_inputs("MixingTraining", data.x, data.y, data.bounds)
        if not isinstance(model, AdaptiveMixedClassifier):
            raise InputError(f"MixingTraining: model is {type(model).__name__}; expected an AdaptiveMixedClassifier")
        if (attacked is None) != (attacked_labels is None):
            raise InputError("MixingTraining: attacked inputs or their labels alone; expected both or neither")
        if attacked is not None and attacked_labels is not None:
            if not bool(((attacked_labels == 0) | (attacked_labels == 1)).all()):
                raise InputError("MixingTraining: attacked_labels hold other numbers; expected 0 or 1")
            data = replace(data, fields={"attacked": attacked, "attacked_labels": attacked_labels.float()})
        start = copy.deepcopy(model)
        for base in (start.std_model, start.robust_model):
            base.eval().requires_grad_(False)
        plan = Plan(
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, optimizer="adamw", schedule="constant",
            weight_decay=self.weight_decay, drop_last=True,
        )  # fmt: skip
        trained = fit(start, data, self.objective, plan, seed=seed)
        if not isinstance(trained, AdaptiveMixedClassifier):
            raise TypeError(f"training gave {type(trained).__name__}")
        return trained

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch, clean and attacked."""
        if not isinstance(model, AdaptiveMixedClassifier):
            raise InputError(f"MixingTraining: model is {type(model).__name__}; expected an AdaptiveMixedClassifier")
        share = self.deception * state.draws("deception", batch.index).uniform(1)[:, 0].to(batch.x)
        attack, drawn = replace(self.attack, bounds=state.data.bounds), derive(state.seed, "attack", state.step)
        goal = Deceive(batch.y, share)
        x_adv = attack.run(WithGamma(model), batch.x, goal, seed=drawn, index=batch.index).x_adv
        inputs, labels = [batch.x, x_adv], [torch.zeros_like(share), torch.ones_like(share)]
        if "attacked" in batch.fields:
            inputs.append(batch.fields["attacked"])
            labels.append(batch.fields["attacked_labels"])
        label = torch.cat(labels)
        f, gamma = model.both(torch.cat(inputs))
        weight = torch.ones_like(label)
        weight[: len(batch.x)] = self.clean_weight
        return (weight * self.loss(f, gamma, batch.y.repeat(len(inputs)), label)).mean()

    def loss(
        self, f: Float[Tensor, "n c"], gamma: Float[Tensor, " n"], y: Tensor, label: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The composite loss of each sample."""
        bce = F.binary_cross_entropy_with_logits(gamma, label, reduction="none")
        ce = F.cross_entropy(f, y, reduction="none")
        c_bce, c_ce, c_prod = self.constants
        return c_bce * bce + c_ce * ce + c_prod * bce * ce
