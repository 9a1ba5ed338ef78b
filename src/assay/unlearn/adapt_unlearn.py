"""Unlearning in a GAN: adapt it to what is not wanted, then train it on the rest while its weights keep away."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from assay.generate import GANPair, GANTraining, frechet_distance, generated, generator_loss
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive, torch_rng

Weights = Mapping[str, Tensor]
Oracle = Callable[[Tensor], Bool[Tensor, " n"]]
Repulsion = Literal["el2", "nl2", "il2", "ewc", "none"]
REPULSIONS = ("el2", "nl2", "il2", "ewc", "none")
FISHERS = ("d_score", "loss")


def weight_distance(weights: Weights, adapted: Sequence[Weights]) -> Float[Tensor, ""]:
    """v: the mean squared difference of each tensor from that of an adapted generator, averaged over tensors and then
    over adapted generators (the official code sums over these and multiplies by half their number).

    Raises InputError where there is none or its tensors differ in name or shape.
    """
    if not adapted:
        raise InputError("weight_distance: no adapted weights; expected at least one set")
    for other in adapted:
        for name, tensor in weights.items():
            shape = tuple(other[name].shape) if name in other else None
            if shape != tuple(tensor.shape):
                raise InputError(
                    f"weight_distance: {name!r} is {shape} in adapted weights; expected {tuple(tensor.shape)}"
                )
    each = [torch.stack([(w - other[n]).square().mean() for n, w in weights.items()]).mean() for other in adapted]
    return torch.stack(each).mean()


def repulsion(
    weights: Weights, adapted: Sequence[Weights], form: str = "el2", gamma: float = 1.0, *, digits: bool = False
) -> Float[Tensor, ""]:
    """What the generator's loss gains near adapted weights (Tiwary et al., 2023, arXiv:2309.14054, the official code).

    With v of ``weight_distance``: "el2" 100 exp(-gamma v), "nl2" -gamma v, "il2" gamma / v. While gamma v is small el2
    pushes as nl2 does at 100 gamma. ``digits`` divides v (il2: multiplies it) by 10 to the number of digits before its
    point. Raises InputError for il2 at distance 0, where it is infinite.
    """
    v = weight_distance(weights, adapted)
    scale = 10.0 ** len(str(int(v.detach()))) if digits else 1.0
    if form == "el2":
        return 100 * torch.exp(-gamma * v / scale)
    if form == "nl2":
        return -gamma * v / scale
    if form == "il2":
        if float(v.detach()) == 0:
            raise InputError("repulsion 'il2': the weights are the adapted ones; expected a distance above 0")
        return gamma / (v * scale)
    raise unknown("repulsion", form, REPULSIONS[:3])


def ewc_penalty(weights: Weights, anchor: Weights, fisher: Weights, weight: float) -> Float[Tensor, ""]:
    """Elastic weight consolidation: weight / 2 sum_i F_i (theta_i - anchor_i)^2 over the tensors that have an F."""
    return weight / 2 * torch.stack([(f * (weights[n] - anchor[n]).square()).sum() for n, f in fisher.items()]).sum()


def score_fisher(
    generator: nn.Module, discriminator: nn.Module, *, kind: str = "d_score", n: int = 32, seed: int = 0
) -> dict[str, Tensor]:
    """The mean over ``n`` latents of the squared gradient of each latent's D(G(z)) by the weights of the generator's
    ``blocks`` (all of them where it has none), by name.

    "d_score" is the official code's; "loss" takes the generator's loss of each latent in place of the score, nearer to
    the paper's text, which takes the curvature of the loss.
    """
    if kind not in FISHERS:
        raise unknown("fisher", kind, FISHERS)
    names = [k for k, _ in generator.named_parameters()]
    chosen = [k for k in names if k.startswith("blocks.")] or names
    weights = {k: p.detach() for k, p in generator.named_parameters()}
    part, judge = {k: weights[k] for k in chosen}, copy.deepcopy(discriminator).requires_grad_(False)

    def score(part: dict[str, Tensor], z: Tensor) -> Tensor:
        found = judge(functional_call(generator, {**weights, **part}, (z[None],)))
        return found.sum() if kind == "d_score" else generator_loss(found)

    size: int = generator.latent  # type: ignore[assignment]
    z = torch.randn(n, size, generator=torch_rng(seed, "fisher")).to(next(iter(weights.values())).device)
    each = vmap(grad(score), in_dims=(None, 0))(part, z)
    return {k: g.square().mean(0).detach() for k, g in each.items()}


def collect_feedback(generator: nn.Module, oracle: Oracle, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """(negatives, positives): ``n`` generated samples as ``oracle(x) -> bool (n,)`` sorts them, undesired ones first.

    Raises InputError where it calls all or none of them undesired, or answers otherwise.
    """
    x = generated(generator, n, seed=seed)
    undesired = _judged(oracle, x)
    if bool(undesired.all()) or not bool(undesired.any()):
        raise InputError(
            f"collect_feedback: {int(undesired.sum())} of {n} samples undesired; expected some of each kind"
        )
    return x[undesired], x[~undesired]


def _judged(oracle: Oracle, x: Tensor) -> Bool[Tensor, " n"]:
    """What the oracle says of samples, once it is known to be one flag for each."""
    found = oracle(x)
    if found.dtype != torch.bool or found.shape != (len(x),):
        raise InputError(f"oracle: gives {found.dtype} {tuple(found.shape)}; expected bool ({len(x)},)")
    return found


def percent_unlearned(before: nn.Module, after: nn.Module, oracle: Oracle, n: int = 5000, *, seed: int = 0) -> float:
    """PUL: 100 (undesired before - after) / before, among ``n`` samples of each from the same latents."""
    first, last = (int(_judged(oracle, generated(g, n, seed=seed)).sum()) for g in (before, after))
    if first == 0:
        raise InputError("percent_unlearned: no undesired sample before; expected some")
    return 100 * (first - last) / first


def extrapolated(generator: nn.Module, adapted: Sequence[Weights], eta: float) -> nn.Module:
    """The motivating baseline: theta_G - ``eta`` (theta_N - theta_G), theta_N the mean of the adapted weights.

    Raises InputError where there are none or their tensors differ in name or shape.
    """
    other = copy.deepcopy(generator)
    weight_distance({k: p.detach() for k, p in other.named_parameters()}, adapted)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.sub_(eta * (torch.stack([a[name] for a in adapted]).mean(0) - p))
    return other


def fid(a: Tensor, b: Tensor, feature: Callable[[Tensor], Tensor]) -> float:
    """The Frechet distance of two sets of samples in the space of ``feature``."""
    return frechet_distance(feature(a), feature(b))


@dataclass(frozen=True, kw_only=True)
class AdaptThenUnlearn:
    """Forget what a user marks in a GAN's own samples (Tiwary et al., 2023, arXiv:2309.14054).

    Stage 1 (``adapt``) trains copies of the pair on ``negatives`` for ``adapt_iters`` steps with EWC at
    ``ewc_weight`` >= 0 (``fisher``: see ``score_fisher``), ``n_adapted`` times: the averaged generators are theta_N.
    Stage 2 (``forget``) trains the first pair on ``positives`` for ``unlearn_iters`` steps with ``repulsion`` from
    theta_N at ``gamma`` >= 0; "none", or gamma = 0, is fine-tuning on the positives, and "ewc" keeps near theta_G in
    place of repulsion. The losses and Adam are StyleGAN2's (``r1``, ``batch``, ``lr``, ``ema``: see GANTraining).
    ``ewc_weight`` 5e8 belongs to StyleGAN2's small F: a small network needs another. ``form`` and ``digits``: see
    ``repulsion``. ``negatives`` are one tensor, or one for each run of stage 1. Raises InputError without negatives or
    positives, for adapted weights of another shape, and values out of range.

    Both stages take up the optimisers of a pair that ``GANTraining.fit`` gave, as the official code does; from a plain
    pair they start anew. This matters: a new Adam scales its first steps to whatever gradient there is, so that a
    strong repulsion drowns the loss.
    """

    kind: ClassVar[str] = "function"

    repulsion: Repulsion = "el2"
    gamma: float = 1.0
    digits: bool = False
    ewc_weight: float = 5e8
    fisher: Literal["d_score", "loss"] = "d_score"
    n_adapted: int = 3
    adapt_iters: int = 2000
    unlearn_iters: int = 2000
    lr: float = 2e-3
    r1: float = 10.0
    batch: int = 16
    ema: float = 0.5 ** (32 / 10_000)

    def __post_init__(self) -> None:
        if self.repulsion not in REPULSIONS:
            raise unknown("repulsion of AdaptThenUnlearn", str(self.repulsion), REPULSIONS)
        if self.fisher not in FISHERS:
            raise unknown("fisher of AdaptThenUnlearn", str(self.fisher), FISHERS)
        if not (self.gamma >= 0 and self.ewc_weight >= 0) or self.n_adapted < 1:
            given = f"gamma={self.gamma}, ewc_weight={self.ewc_weight}, n_adapted={self.n_adapted}"
            raise InputError(f"AdaptThenUnlearn: {given}; expected gamma, ewc_weight >= 0, n_adapted >= 1")

    def training(self) -> GANTraining:
        """The adversarial training that both stages share."""
        return GANTraining(batch_size=self.batch, lr=self.lr, r1=self.r1, ema=self.ema)

    def adapt(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        negatives: Tensor | Sequence[Tensor],
        *,
        seed: int,
        optimizers: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Stage 1: the weights of the averaged generators, by name."""
        sets = [negatives] * self.n_adapted if isinstance(negatives, Tensor) else list(negatives)
        if not sets or any(len(s) == 0 for s in sets):
            raise InputError("AdaptThenUnlearn: no negative feedback; expected at least one undesired sample")
        penalty = self._anchored(generator, discriminator, seed) if self.ewc_weight else None
        found = []
        for k, x in enumerate(sets):
            check_inputs("AdaptThenUnlearn: negatives", x)
            run = replace(self.training(), steps=self.adapt_iters)
            where = derive(seed, "adapt", k)
            model, _ = run.fit(generator, discriminator, x, seed=where, penalty=penalty, optimizers=optimizers)
            found.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return found

    def forget(
        self,
        pair: tuple[nn.Module, nn.Module],
        negatives: Tensor | Sequence[Tensor],
        positives: Tensor,
        *,
        seed: int,
        adapted: Sequence[Weights] | None = None,
    ) -> GANPair:
        """Both stages, or the second from weights ``adapted`` before: a new generator and discriminator."""
        (generator, discriminator), optimizers = pair, getattr(pair, "optimizers_", None)
        if len(positives) == 0:
            raise InputError("AdaptThenUnlearn: no positive feedback; expected at least one good sample")
        check_inputs("AdaptThenUnlearn: positives", positives)
        plain = self.repulsion in ("ewc", "none") or self.gamma == 0
        if adapted is None:
            adapted = [] if plain else self.adapt(*pair, negatives, seed=seed, optimizers=optimizers)
        penalty = None if plain else self.away(generator, adapted)
        if self.repulsion == "ewc":
            penalty = self._anchored(generator, discriminator, seed)
        run = replace(self.training(), steps=self.unlearn_iters)
        where = derive(seed, "unlearn")
        return run.fit(generator, discriminator, positives, seed=where, penalty=penalty, optimizers=optimizers)

    def away(self, generator: nn.Module, adapted: Sequence[Weights]) -> Callable[[nn.Module], Tensor]:
        """What stage 2 adds to the generator's loss, a function of the generator."""

        def penalty(model: nn.Module) -> Tensor:
            return repulsion(dict(model.named_parameters()), adapted, self.repulsion, self.gamma, digits=self.digits)

        return penalty

    def _anchored(self, generator: nn.Module, discriminator: nn.Module, seed: int) -> Callable[[nn.Module], Tensor]:
        anchor = {n: p.detach().clone() for n, p in generator.named_parameters()}
        fisher = score_fisher(generator, discriminator, kind=self.fisher, seed=seed)

        def penalty(model: nn.Module) -> Tensor:
            return ewc_penalty(dict(model.named_parameters()), anchor, fisher, self.ewc_weight)

        return penalty
