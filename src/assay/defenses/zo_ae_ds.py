"""Denoised smoothing of models that answer queries alone, in pixels (ZO-DS) and through an autoencoder (ZO-AE-DS)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.defenses.denoisers import ConvDecoder, ConvEncoder, DenoiseMap, DnCNN
from assay.defenses.purifier import Purified
from assay.defenses.zo import CHUNK, PointLoss, cge_gradient, rge_gradient, zo_surrogate_loss
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.random import derive, seeded, torch_rng
from assay.runtime.spec import rebuildable
from assay.subject import Subject
from assay.training import Plan, State, fit

SampleLoss = Callable[[Tensor, Tensor], Tensor]
LARGE = 4096  # coordinates past which two queries for each are refused unless forced


class BlackBox(nn.Module):
    """Any callable on inputs (n, ...) that answers with a tensor or an array; ``queries`` counts the inputs."""

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.queries = model, 0

    def forward(self, x: Float[Tensor, "n ..."]) -> Tensor:
        self.queries += len(x)
        with torch.no_grad():
            return torch.as_tensor(self.model(x.detach())).to(x.device)


@rebuildable
class Denoised(Purified):
    """What is fitted: ``purify`` (denoiser and autoencoder) before a copy of the model.

    ``queries_`` is how many inputs the model was asked for while fitting, ``history_`` the loss and the queries so far
    after every step. To certify, smooth it: ``RandomizedSmoothing(sigma=...)`` of the room certify takes it as a model.
    """

    purify: DenoiseMap

    def __init__(self, purify: DenoiseMap, model: nn.Module) -> None:
        super().__init__(purify, model)
        self.queries_, self.history_ = 0, list[dict[str, float]]()


@dataclass(frozen=True, kw_only=True)
class DenoisedSmoothing:
    """A denoiser D before a frozen model, for smoothing with noise of deviation ``sigma``: FO-DS with ``estimator``
    "fo" (Salman et al., 2020, arXiv:2003.01908), ZO-DS with "rge" (Zhang et al., 2022, arXiv:2203.14195, section 4).

    ``fit(model, data, seed=...)`` lowers the cross-entropy of the model's answers to D(x + sigma noise). The target is
    the model's own decision on x (``target`` "prediction", the stability objective) or the label ("label"). "fo" goes
    through the model; "rge" (``q`` random directions) and "cge" (all coordinates) ask for scores alone, at a distance
    ``mu``: the model may be any callable, also one that gives arrays. ``probabilities`` says that its scores are no
    logits. "cge" for more than 4096 coordinates needs ``force``. ``loss(answer to the noisy, answer to the clean)``,
    (n,), takes the place of cross-entropy, for models that give images or mere decisions. Noisy inputs are not clipped.

    The network is ``denoiser`` or a DnCNN of ``depth`` and ``width``; it starts as the identity. For
    ``pretrain_denoiser`` epochs it first learns to remove the noise: the paper advises against any. Adam with a
    constant rate, as in the first 200 epochs of the official runs. InputError for numbers out of range and for answers
    that are no scores.
    """

    kind: ClassVar[str] = "repair"

    sigma: float = 0.25
    estimator: Literal["fo", "rge", "cge"] = "rge"
    q: int = 192
    mu: float = 5e-3
    target: Literal["prediction", "label"] = "prediction"
    probabilities: bool = False
    loss: SampleLoss | None = None
    denoiser: nn.Module | None = None
    depth: int = 17
    width: int = 64
    pretrain_denoiser: int = 0
    force: bool = False
    epochs: int = 200
    steps: int | None = None
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name, choices in (("estimator", ("fo", "rge", "cge")), ("target", ("prediction", "label"))):
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of {where}", str(getattr(self, name)), choices)
        if not self.sigma > 0 or not self.mu > 0 or self.q < 1:
            found = f"sigma={self.sigma}, mu={self.mu}, q={self.q}"
            raise InputError(f"{where}: {found}; expected sigma and mu above 0 and q >= 1")

    def fit(self, model: Callable[[Tensor], Any], data: Data, *, seed: int) -> Denoised:
        """The denoised model; ``model`` is untouched."""
        where = type(self).__name__
        check_inputs(where, data.x, data.y, data.bounds)
        module = model if isinstance(model, nn.Module) else None
        if self.estimator == "fo" and module is None:
            raise InputError(f"{where}: model is {type(model).__name__}; expected a torch module for estimator 'fo'")
        box, history = BlackBox(model), list[dict[str, float]]()

        def objective(purify: nn.Module, batch: Batch, state: State) -> Tensor:
            if not isinstance(purify, DenoiseMap):
                raise TypeError(f"{where}: {type(purify).__name__} is no DenoiseMap")
            return self.objective(purify, box if module is None or self.estimator != "fo" else module, batch, state)

        def note(_: Mapping[str, nn.Module], state: State) -> None:
            history.append({"loss": state.log[-1]["model"], "queries": float(box.queries)})

        start = self.prepare(data, seed=seed)
        with evaluating(module) if module is not None else nullcontext():
            data = replace(data, fields={"target": self.targets(box, data)})
            purify = fit(start, data, objective, self.plan(self.epochs, self.steps), seed=seed, hooks=[note])
        if not isinstance(purify, DenoiseMap):
            raise TypeError(f"{where}: training gave {type(purify).__name__}")
        fitted = Denoised(purify, box if module is None else copy.deepcopy(module)).eval()
        fitted.queries_, fitted.history_ = box.queries, history
        return fitted

    def prepare(self, data: Data, *, seed: int) -> DenoiseMap:
        """What training starts from, with the parts that stay fixed frozen."""
        start = DenoiseMap(self._denoiser(data, seed))
        self._check_size(data.x[0].numel())
        return start

    def _check_size(self, size: int) -> None:
        if self.estimator == "cge" and size > LARGE and not self.force:
            where = type(self).__name__
            raise InputError(f"{where}: 'cge' for {size} coordinates; expected at most {LARGE}, or force=True")

    def targets(self, box: nn.Module, data: Data) -> Tensor:
        """What each sample's loss compares with, asked for once."""
        if self.target == "label":
            return data.y
        answers = batched(box, data.x)
        return answers if self.loss is not None else self._scores(answers).argmax(1)

    def objective(self, purify: DenoiseMap, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The mean loss where gradients go through the model, else the surrogate that has the estimated gradient."""
        purify.decoder.eval()
        target = batch.fields["target"]
        z = purify.latent(batch.x + self.sigma * torch.randn_like(batch.x))

        def loss_fn(points: Tensor) -> Tensor:
            return self.losses(model(purify.decoder(points)), target.repeat_interleave(len(points) // len(target), 0))

        if self.estimator == "fo":
            return loss_fn(z).mean()
        return zo_surrogate_loss(z, self.gradient(loss_fn, z, torch_rng(state.seed, "directions", state.step)))

    def gradient(self, loss_fn: PointLoss, z: Float[Tensor, "n ..."], generator: torch.Generator) -> Tensor:
        """The estimate for each sample."""
        if self.estimator == "cge":
            return cge_gradient(loss_fn, z, self.mu, self.chunk)
        return rge_gradient(loss_fn, z, self.q, self.mu, generator, self.chunk)

    def losses(self, answers: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """The loss of each answer."""
        if self.loss is not None:
            return self.loss(answers, target)
        scores = self._scores(answers)
        if self.probabilities:
            return F.nll_loss(scores.clamp_min(1e-12).log(), target, reduction="none")
        return F.cross_entropy(scores, target, reduction="none")

    def _scores(self, answers: Tensor) -> Float[Tensor, "n c"]:
        if answers.dim() != 2 or not answers.is_floating_point() or not torch.isfinite(answers).all():
            found = f"{answers.dtype} of shape {tuple(answers.shape)}"
            raise InputError(f"{type(self).__name__}: the model answers with {found}; expected finite scores (n, c)")
        return answers

    def plan(self, epochs: int, steps: int | None = None) -> Plan:
        """The plan of a stage."""
        return Plan(
            epochs=epochs,
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule="constant",
        )

    def _denoiser(self, data: Data, seed: int) -> nn.Module:
        with seeded(seed, "denoiser"):
            net = (
                DnCNN(data.shape[0], self.depth, self.width) if self.denoiser is None else copy.deepcopy(self.denoiser)
            )

        def objective(module: nn.Module, batch: Batch, state: State) -> Tensor:
            return F.mse_loss(module(batch.x + self.sigma * torch.randn_like(batch.x)), batch.x)

        if not self.pretrain_denoiser:
            return net
        return fit(net, data, objective, self.plan(self.pretrain_denoiser), seed=derive(seed, "pretrain"))

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's model behind the denoiser."""
        return self.fit(subject.model, subject.training(type(self).__name__), seed=seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """Doing nothing is the control: the model itself is unchanged."""
        return None


@dataclass(frozen=True, kw_only=True)
class ZOAEDenoisedSmoothing(DenoisedSmoothing):
    """ZO-AE-DS (Zhang et al., 2022, arXiv:2203.14195, section 5): between denoiser and model stands an autoencoder, and
    gradients are estimated for its code alone, of far fewer coordinates than pixels. FO-AE-DS with ``estimator`` "fo".

    Stage 0 trains encoder and decoder on clean data for ``ae_epochs`` at ``ae_lr`` by squared error. Stage 1 freezes
    the decoder, takes decoder and model for one black box of the code, and trains denoiser and encoder (``scope``
    "whole"), the denoiser alone ("part"), or all three ("whole_plus", which needs gradients: "fo"). ``encoder`` and
    ``decoder`` are the networks that stage 0 starts from (0 epochs: those of stage 1); none given: a ``ConvEncoder``
    and a ``ConvDecoder`` of ``latent`` maps with ``kernel`` and ``stride``. The rest is as in DenoisedSmoothing.
    """

    estimator: Literal["fo", "rge", "cge"] = "cge"
    scope: Literal["whole", "part", "whole_plus"] = "whole"
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    latent: int = 12
    kernel: int = 5
    stride: int = 3
    ae_epochs: int = 100
    ae_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("whole", "part", "whole_plus"):
            raise unknown("scope of ZOAEDenoisedSmoothing", str(self.scope), ("whole", "part", "whole_plus"))
        if self.scope == "whole_plus" and self.estimator != "fo":
            raise InputError(f"ZOAEDenoisedSmoothing: scope 'whole_plus' with {self.estimator!r}; expected 'fo'")
        if (self.encoder is None) != (self.decoder is None):
            raise InputError("ZOAEDenoisedSmoothing: an encoder or a decoder alone; expected both or neither")

    def pretrain_autoencoder(self, data: Data, *, seed: int) -> DenoiseMap:
        """Stage 0: encoder and decoder for clean data, without a denoiser."""
        with seeded(seed, "autoencoder"):
            sizes = {"channels": data.shape[0], "latent": self.latent, "kernel": self.kernel, "stride": self.stride}
            encoder = ConvEncoder(**sizes) if self.encoder is None else copy.deepcopy(self.encoder)
            decoder = ConvDecoder(**sizes) if self.decoder is None else copy.deepcopy(self.decoder)
        start = DenoiseMap(nn.Identity(), encoder, decoder)
        self._check_code(start, data.x[:1])
        if not self.ae_epochs:
            return start

        def objective(module: nn.Module, batch: Batch, state: State) -> Tensor:
            return F.mse_loss(module(batch.x), batch.x)

        plan = replace(self.plan(self.ae_epochs), lr=self.ae_lr, weight_decay=0.0)
        trained = fit(start, data, objective, plan, seed=derive(seed, "autoencoder"))
        if not isinstance(trained, DenoiseMap):
            raise TypeError(f"training gave {type(trained).__name__}")
        return trained

    @torch.no_grad()
    def _check_code(self, start: DenoiseMap, x: Float[Tensor, "1 c h w"]) -> None:
        """InputError unless the autoencoder gives back the shape of the samples, from a code that may be estimated."""
        try:
            with evaluating(start):
                code = start.latent(x.to(device_of(start)))
                made = str(tuple(start.decoder(code).shape[1:]))
        except RuntimeError as error:
            made = f"nothing ({str(error).splitlines()[0]})"
        if made != str(tuple(x.shape[1:])):
            found = f"the autoencoder makes {made} of samples of shape {tuple(x.shape[1:])}"
            raise InputError(
                f"{type(self).__name__}: {found}; expected the same shape (kernel, stride, or own networks)"
            )
        self._check_size(code.numel())

    def prepare(self, data: Data, *, seed: int) -> DenoiseMap:
        inner = self.pretrain_autoencoder(data, seed=seed)
        inner.encoder.requires_grad_(self.scope != "part")
        inner.decoder.requires_grad_(self.scope == "whole_plus")
        return DenoiseMap(self._denoiser(data, seed), inner.encoder, inner.decoder)
