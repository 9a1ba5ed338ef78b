"""Online gradient descent on the perturbed prediction of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.decide.perturbed_net import PerturbedNet, rademacher
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import numpy_rng

FLOOR = 1e-6  # predicted costs of KL loss stay this far from 0 and 1


class OnlineRegressor:
    """theta <- Proj(theta - eta_t grad L_S), L_S = mean_s l(y, f~(theta; x, e_s)) (Deb et al., 2023, arXiv:2312.07145).

    ``loss``: "square", (y - f~)^2 / 2, any finite y; or "kl", cross-entropy of sigmoid(f~) against y in [0, 1].
    S = ``copies`` of the signs are drawn afresh each round and serve its prediction and its update. Under square loss
    the signs add c_p^2 |theta - theta_0|^2 / (2 sqrt(m)) in expectation: a strongly convex pull to theta_0. It comes
    from averaging losses; ``average="predictions"`` takes the loss of the mean prediction, which has 1/S of it.
    eta_t = ``lr``, or ``lr`` / t with ``schedule="inverse"``. The projection is on |theta - theta_0| <= ``rho``.
    Each update makes ``passes`` steps on the last ``window`` samples. ``seeds``: one a network, for the signs.
    """

    def __init__(
        self,
        net: PerturbedNet,
        *,
        loss: Literal["square", "kl"] = "square",
        lr: float = 0.1,
        schedule: Literal["constant", "inverse"] = "constant",
        copies: int = 10,
        rho: float = math.inf,
        window: int = 1,
        passes: int = 1,
        average: Literal["losses", "predictions"] = "losses",
        seeds: Sequence[int] = (0,),
    ) -> None:
        for name, value, known in (
            ("loss", loss, ("square", "kl")),
            ("schedule", schedule, ("constant", "inverse")),
            ("average", average, ("losses", "predictions")),
        ):
            if value not in known:
                raise unknown(f"{name} of OnlineRegressor", value, known)
        if not (lr > 0 and rho > 0 and min(copies, window, passes) >= 1 and len(seeds) == len(net.theta)):
            raise InputError(
                f"OnlineRegressor: lr={lr}, rho={rho}, copies={copies}, window={window}, passes={passes}, "
                f"{len(seeds)} seeds; expected positive numbers and {len(net.theta)} seeds"
            )
        self.net, self.kind_of_loss, self.lr, self.schedule, self.rho = net, loss, lr, schedule, rho
        self.copies, self.window, self.passes, self.average = copies, window, passes, average
        self.round = 1
        self.seeds = tuple(seeds)
        self._rngs: list[np.random.Generator] = []
        self._signs: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    @property
    def signs(self) -> Float[Tensor, "b s p"] | None:
        """This round's signs; None where c_p = 0 leaves them without effect."""
        if self._signs is None and self.net.c_p > 0:
            self._rngs = self._rngs or [numpy_rng(seed, "signs") for seed in self.seeds]
            size = self.net.theta.shape[1]
            self._signs = rademacher(self._rngs, self.copies, size).to(self.net.theta)
        return self._signs

    def link(self, z: Tensor) -> Tensor:
        """The predicted cost of an output of the network."""
        return z if self.kind_of_loss == "square" else z.sigmoid()

    @torch.no_grad()
    def predict(self, x: Tensor, arm: Int[Tensor, "b n"] | None = None) -> Float[Tensor, "b n"]:
        """The predicted costs: those of the mean perturbed prediction. InputError where one is not finite."""
        z, signs = self.net(x, arm), self.signs
        if signs is not None:
            z = z + self.net.shift(signs).mean(1, keepdim=True)
        if not torch.isfinite(z).all():
            raise InputError("OnlineRegressor: a prediction is not finite; expected a smaller lr or finite inputs")
        return z if self.kind_of_loss == "square" else z.sigmoid().clamp(FLOOR, 1 - FLOOR)

    def loss(
        self, x: Tensor, y: Float[Tensor, "b n"], arm: Tensor | None = None, *, signs: Tensor | None = None
    ) -> Float[Tensor, " b"]:
        """L_S averaged over the inputs, with ``signs`` (b, S, p) or else this round's."""
        drawn = self.signs if signs is None else signs
        z = self.net(x, arm)[..., None] if drawn is None else self.net.perturbed(x, drawn, arm)
        if self.average == "predictions":
            z = z.mean(-1, keepdim=True)
        target = y[..., None]
        if self.kind_of_loss == "square":
            return ((target - z) ** 2 / 2).mean((1, 2))
        return torch.nn.functional.binary_cross_entropy_with_logits(
            z, target.to(z).expand_as(z), reduction="none"
        ).mean((1, 2))

    @torch.no_grad()
    def update(self, x: Tensor, y: Float[Tensor, "b n"], arm: Int[Tensor, "b n"] | None = None) -> None:
        """Learn costs ``y`` of inputs ``x`` (see PerturbedNet for their forms), and end the round.

        InputError for costs that are not finite, or under KL loss outside [0, 1].
        """
        if not torch.isfinite(y).all() or (self.kind_of_loss == "kl" and (y.min() < 0 or y.max() > 1)):
            wanted = "values in [0, 1]" if self.kind_of_loss == "kl" else "finite values"
            raise InputError(f"OnlineRegressor: costs span [{float(y.min())}, {float(y.max())}]; expected {wanted}")
        if self.window > 1:  # what is kept must not follow a caller that fills the same tensors again
            x, y, arm = x.clone(), y.clone(), None if arm is None else arm.clone()
        self._seen = [*self._seen, (x, y, arm)][-self.window :]
        xs, ys, arms = zip(*self._seen, strict=True)
        chosen = None if arm is None else torch.cat(arms, 1)
        for _ in range(self.passes):
            self._step(torch.cat(xs, 1), torch.cat(ys, 1), chosen)
        self.round += 1
        self._signs = None

    def _step(self, x: Tensor, y: Tensor, arm: Tensor | None) -> None:
        theta, start, signs = self.net.theta, self.net.theta_0, self.signs
        at = self.net.linearise(x, arm)
        z = at.value[..., None] if signs is None else at.value[..., None] + self.net.shift(signs)[:, None]
        if self.average == "predictions":
            z = z.mean(-1, keepdim=True).expand_as(z)
        residual = self.link(z) - y[..., None].to(z)  # (b, n, S): dl / dz under either loss
        gradient = torch.einsum("bn,bnp->bp", residual.mean(2) / y.shape[1], self.net.gradients(at))
        if signs is not None:
            gradient += self.net.strength / self.copies * (residual.mean(1)[:, None] @ signs)[:, 0]
        theta.sub_(gradient, alpha=self.lr / self.round if self.schedule == "inverse" else self.lr)
        if math.isfinite(self.rho):
            moved = theta - start
            theta.copy_(start + moved * (self.rho / moved.norm(dim=1, keepdim=True).clamp(min=self.rho)))
