"""The gray-box attack on image-to-text models: only the image encoder is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import wide
from assay.attacks.base import Goal
from assay.attacks.engine import Climb, IterativeAttack
from assay.attacks.image_encoder import POOLS, Pool, embedding, find_image_encoder
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating, ordinary, traceable
from assay.runtime.random import Draws
from assay.subject.access import Access

BETAS = (0.9, 0.999)  # Adam's, as torch has them
TINY = 1e-8  # Adam's epsilon
BETTER = 1e-4  # the relative gain that ReduceLROnPlateau counts as one


@dataclass(frozen=True)
class Onto(Goal):
    """Embeddings like ``reference`` (n, t, d): the likelihood is cos - 1, a mean over the vectors. It is never met."""

    reference: Float[Tensor, "n t d"]

    def labels(self) -> Int[Tensor, " n"]:
        """The last number of an embedding, (n,): an encoder of fewer cannot be compared."""
        return torch.full((len(self.reference),), self.reference[0].numel() - 1)

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)

    def cosine(self, outputs: Float[Tensor, "n td"]) -> Float[Tensor, " n"]:
        """The mean cosine of each sample's vectors with those of the reference."""
        return F.cosine_similarity(outputs.view_as(self.reference), self.reference, dim=2).mean(1)

    def likelihood(self, outputs: Float[Tensor, "n td"]) -> Float[Tensor, " n"]:
        return self.cosine(outputs) - 1


@dataclass(frozen=True)
class Away(Onto):
    """Embeddings unlike ``reference`` (n, t, d): the likelihood is -cos."""

    def likelihood(self, outputs: Float[Tensor, "n td"]) -> Float[Tensor, " n"]:
        return -self.cosine(outputs)


@dataclass(frozen=True, kw_only=True)
class EncoderDescent(IterativeAttack):
    """Adam on eta for c |eta| - likelihood, eta clipped to [-eps, eps] and x + eta to [low, high] after every step.

    Every sample has its own rate: ReduceLROnPlateau on its own loss (``plateau``: patience, factor, cooldown). ``low``
    and ``high`` have one number a channel, or one for all. The last point counts.
    """

    contract: ClassVar[bool] = True

    eps: float
    lr: float
    c: float
    init_std: float
    plateau: tuple[int, float, int]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def inside(self, x: Tensor, eta: Tensor) -> Float[Tensor, "n ..."]:
        """x + eta with eta clipped to its size and the sum to the range of each channel."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        low, high = (x.new_tensor(side).reshape(shape) for side in (self.low, self.high))
        return torch.maximum(torch.minimum(x + eta.clamp(-self.eps, self.eps), high), low)

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        n, x, memory = len(run.x), run.x, run.memory
        memory |= {"first": torch.zeros_like(x), "second": torch.zeros_like(x), "losses": x.new_zeros(n, self.steps)}
        memory |= {"rate": x.new_full((n,), self.lr), "best": x.new_full((n,), math.inf)}
        memory |= {"bad": torch.zeros(n, device=x.device), "rest": torch.zeros(n, device=x.device)}
        return self.inside(x, self.init_std * run.draws.normal(*x.shape[1:]).to(x))

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        run.record(torch.full_like(run.met, run.last))
        return torch.zeros_like(run.met)

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        memory, eta, k = run.memory, run.z - run.x, run.step + 1
        size = eta.flatten(1).norm(dim=1)
        outward = eta / wide(torch.where(size > 0, size, torch.ones_like(size)), eta)
        grad = self.c * outward - run.grad
        memory["first"].lerp_(grad, 1 - BETAS[0])
        memory["second"].lerp_(grad.square(), 1 - BETAS[1])
        mean, square = memory["first"] / (1 - BETAS[0] ** k), memory["second"] / (1 - BETAS[1] ** k)
        eta = eta - wide(memory["rate"], eta) * mean / (square.sqrt() + TINY)
        memory["losses"][:, run.step] = loss = self.c * size - run.level
        self.cool(memory, loss)
        return self.inside(run.x, eta)

    def cool(self, memory: dict[str, Tensor], loss: Float[Tensor, " n"]) -> None:
        """One step of ReduceLROnPlateau for each sample, torch's rules with their defaults."""
        patience, factor, cooldown = self.plateau
        better = loss < memory["best"] * (1 - BETTER)
        memory["best"] = torch.where(better, loss, memory["best"])
        bad = torch.where(better, 0.0, memory["bad"] + 1)
        bad = torch.where(memory["rest"] > 0, 0.0, bad)
        rest = (memory["rest"] - 1).clamp_min(0)
        stuck = bad > patience
        memory["rate"] = torch.where(stuck, memory["rate"] * factor, memory["rate"])
        memory["rest"] = torch.where(stuck, float(cooldown), rest)
        memory["bad"] = torch.where(stuck, 0.0, bad)


@dataclass(frozen=True)
class EncoderAttackResult:
    """What the attack found.

    x_adv (n, ...) as x; cosine (n,) in [-1, 1], of the embeddings of x_adv with those it was led from or onto; l2 and
    linf (n,) the size of x_adv - x, in the units of x; losses (n, steps) before each step.
    """

    x_adv: Tensor
    cosine: Float[Tensor, " n"]
    l2: Float[Tensor, " n"]
    linf: Float[Tensor, " n"]
    losses: Float[Tensor, "n k"]


@dataclass(frozen=True, kw_only=True)
class EncoderAttack:
    """Images that an encoder takes for something else, or for ``target`` (Lapid and Sipper, 2023, arXiv:2306.07591).

    ``attack(encoder, x, target=None, seed=0) -> x_adv`` (n, ...), any decoder's caption of which changes with it. With
    E the embedding of the encoder, untargeted min cos(E(x + eta), E(x)) + c |eta|_2, targeted towards images ``target``
    (shaped as x) min 1 - cos(E(x + eta), E(target)) + c |eta|_2, by Adam of rate ``lr``; |eta| <= ``eps`` in every
    entry. ``encoder`` may be the whole model: its image encoder is found (see find_image_encoder), and nothing else is
    ever called. ``pool`` says what E is (see embedding); the authors' "pooler" moves the first token alone, so that a
    decoder that reads all tokens is led to a target's caption by "tokens" only: their cosines are averaged.

    ``space`` "pixel": x in [0, 1], and the encoder is given (x - ``mean``) / ``std``, one number a channel or one for
    all; "normalized": x is what the encoder is given, eps is in its units and x_adv stays within
    [(0 - mean) / std, (1 - mean) / std]. The authors' code attacks there, within [-1, 1] or unclamped.

    eta starts at normal noise of ``init_std``: at 0 the untargeted loss is stationary, and the authors' zeros rely on
    rounding. |eta| has gradient 0 at 0. Where c exceeds the slope of the cosine, eta stays near 0. The authors attack
    one image at a time; here all have their own rate and ``plateau`` (patience, factor, cooldown; on the loss), so that
    a batch gives the same. Raises InputError for unusable options and inputs.
    """

    kind: ClassVar[str] = "attack"
    access: ClassVar[Access] = Access.GRADIENT
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    eps: float = 50 / 255
    steps: int = 1000
    lr: float = 0.01
    c: float = 0.1
    space: Literal["pixel", "normalized"] = "pixel"
    pool: Pool = "pooler"
    init_std: float = 1e-3
    plateau: tuple[int, float, int] = (30, 0.1, 30)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not (math.isfinite(self.eps) and self.eps > 0 and math.isfinite(self.lr) and self.lr > 0) or self.steps < 1:
            given = f"eps is {self.eps}, lr {self.lr}, steps {self.steps}"
            raise InputError(f"{where}: {given}; expected finite eps, lr > 0 and steps >= 1")
        if not (math.isfinite(self.c) and self.c >= 0 and math.isfinite(self.init_std) and self.init_std >= 0):
            raise InputError(f"{where}: c is {self.c}, init_std {self.init_std}; expected finite numbers >= 0")
        if self.space not in ("pixel", "normalized"):
            raise unknown(f"space of {where}", str(self.space), ("pixel", "normalized"))
        if not callable(self.pool) and self.pool not in POOLS:
            raise unknown(f"pool of {where}", str(self.pool), POOLS)
        if len(self.plateau) != 3 or self.plateau[0] < 0 or not 0 < self.plateau[1] < 1 or self.plateau[2] < 0:
            raise InputError(f"{where}: plateau is {self.plateau}; expected (patience >= 0, 0 < factor < 1, cooldown)")
        if len(self.mean) != len(self.std) or not self.mean or not all(s > 0 for s in self.std):
            raise InputError(f"{where}: mean {self.mean}, std {self.std}; expected as many of each, std > 0")

    def __call__(
        self,
        encoder: nn.Module,
        x: Float[Tensor, "n ch h w"],
        target: Float[Tensor, "n ch h w"] | None = None,
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n ch h w"]:
        """The attacked images."""
        return self.run(encoder, x, target, seed=seed, index=index).x_adv

    def run(
        self,
        encoder: nn.Module,
        x: Float[Tensor, "n ch h w"],
        target: Float[Tensor, "n ch h w"] | None = None,
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
        batch_size: int = BATCH,
    ) -> EncoderAttackResult:
        """The attacked images, how near their embeddings are, and how the losses went; ``index`` names the samples."""
        where, part = type(self).__name__, find_image_encoder(encoder)
        self.check(x, target)
        index = torch.arange(len(x)) if index is None else index
        check_labels(f"{where}: index", index, len(x))
        found, device = [], device_of(part)
        eye = _Eye(part, self)
        with traceable(where, part, x), evaluating(eye):
            for k in range(0, len(x), batch_size):
                rows = slice(k, k + batch_size)
                batch = ordinary(x[rows].detach()).to(device)
                towards = None if target is None else ordinary(target[rows].detach()).to(device)
                found.append(self._search(eye, batch, towards, Draws(seed, "eta", index[rows].to(device))))
        names = [f.name for f in fields(EncoderAttackResult)]
        return EncoderAttackResult(**{n: torch.cat([getattr(r, n) for r in found]).to(x.device) for n in names})

    def check(self, x: Tensor, target: Tensor | None) -> None:
        """Raise InputError unless x, and the target where there is one, are finite images in the range of ``space``."""
        low, high = self.range
        for name, z in (("x", x), ("target", target)):
            if z is None:
                continue
            where = f"{type(self).__name__}: {name}"
            check_inputs(where, z)
            if z.dim() < 3 or len(self.mean) not in (1, z.shape[1]):
                expected = f"(n, {len(self.mean)}, ...)" if len(self.mean) > 1 else "(n, channels, ...)"
                raise InputError(f"{where} has shape {tuple(z.shape)}; expected {expected}, as mean and std have it")
            if z.shape != x.shape:
                raise InputError(f"{where} has shape {tuple(z.shape)}; expected {tuple(x.shape)}, the shape of x")
            flat = z.transpose(0, 1).flatten(1)
            under, over = flat.amin(1) < flat.new_tensor(low) - 1e-5, flat.amax(1) > flat.new_tensor(high) + 1e-5
            if (under | over).any():
                raise InputError(f"{where} spans [{z.min():.4g}, {z.max():.4g}]; expected {self.space} values")

    @property
    def range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the largest value of each channel."""
        if self.space == "pixel":
            return (0.0,) * len(self.mean), (1.0,) * len(self.mean)
        both = list(zip(self.mean, self.std, strict=True))
        return tuple(-m / s for m, s in both), tuple((1 - m) / s for m, s in both)

    def goal(self, reference: Float[Tensor, "n t d"], targeted: bool) -> Onto:
        """What is sought: embeddings like the target's, or unlike x's own."""
        return Onto(reference) if targeted else Away(reference)

    def descent(self) -> EncoderDescent:
        """The search for eta."""
        names = ("eps", "steps", "lr", "c", "init_std", "plateau")
        low, high = self.range
        return EncoderDescent(low=low, high=high, **{n: getattr(self, n) for n in names})

    def _search(self, eye: _Eye, x: Tensor, target: Tensor | None, draws: Draws) -> EncoderAttackResult:
        with torch.no_grad():
            reference = eye.vectors(x if target is None else target)
        goal = self.goal(reference, target is not None)
        climb = Climb(self.descent(), eye, x, goal, draws)
        climb.run()
        with torch.no_grad():
            cosine = goal.cosine(eye(climb.x_adv))
        eta = (climb.x_adv - x).flatten(1)
        return EncoderAttackResult(climb.x_adv, cosine, eta.norm(dim=1), eta.abs().amax(1), climb.memory["losses"])


class _Eye(nn.Module):
    """The encoder from the images of the attack's space to embeddings (n, t d)."""

    def __init__(self, encoder: nn.Module, attack: EncoderAttack) -> None:
        super().__init__()
        self.encoder, self.attack = encoder, attack

    def vectors(self, z: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n t d"]:
        """Embeddings (n, t, d)."""
        if self.attack.space == "pixel":
            shape = (1, -1, *[1] * (z.dim() - 2))
            z = (z - z.new_tensor(self.attack.mean).reshape(shape)) / z.new_tensor(self.attack.std).reshape(shape)
        output: Any = self.encoder(z)
        return embedding(output, self.attack.pool)

    def forward(self, z: Tensor) -> Float[Tensor, "n td"]:
        return self.vectors(z).flatten(1)
