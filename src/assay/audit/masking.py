"""Signs that gradients mislead attacks, so that a model looks more robust than it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from assay.attacks import FGSM, PGD, AttackResult, Linf, Untargeted
from assay.attacks.base import OBJECTIVES
from assay.data import Data
from assay.runtime.inference import device_of, evaluating

TOLERATED = 0.03  # the share of samples that a sign may be seen on by chance of starts and steps
SIGNS = {
    "flat": "the gradient is exactly zero at {}",
    "square": "Square, which takes no gradient, breaks {} that APGD and FAB do not",
    "one_step": "one step breaks {} that PGD does not",
    "saved": "a ball twice as large saves {} from PGD",
    "left": "PGD without a limit on the perturbation leaves {} right",
}


def flat(model: nn.Module, x: Tensor, y: Tensor) -> Bool[Tensor, " n"]:
    """The samples at which the gradient of the log-odds of y is exactly zero."""
    with evaluating(model), torch.enable_grad():
        z = x.detach().to(device_of(model)).requires_grad_()
        (grad,) = torch.autograd.grad(
            OBJECTIVES["ce"](model(z), Untargeted(y.to(z.device))).sum(), z, allow_unused=True
        )
    return torch.ones(len(x), dtype=torch.bool) if grad is None else (grad.flatten(1) == 0).all(1).cpu()


def signs_of_masking(
    model: nn.Module, data: Data, pgd: PGD, strongest: AttackResult, *, seed: int
) -> dict[str, Bool[Tensor, " n"]]:
    """The samples that show each sign of masked gradients (Athalye et al., 2018, arXiv:1802.00420, section 3.1).

    ``pgd`` is the attack under suspicion and ``strongest`` what AutoAttack found on the same ``data`` in the same ball.
    The signs: samples without a gradient; a search that takes no gradient breaks what gradients do not; one step breaks
    what many do not; a ball twice as large saves samples; an attack without limit leaves some.
    """
    goal = Untargeted(data.y)

    def broken(attack: PGD | FGSM) -> Tensor:
        return attack.run(model, data.x, goal, seed=seed, index=data.index).success

    pgd_broke = broken(pgd)
    one_step = broken(FGSM(ball=pgd.ball, bounds=pgd.bounds)) & ~pgd_broke
    saved = pgd_broke & ~broken(replace(pgd, ball=replace(pgd.ball, eps=2 * pgd.ball.eps)))
    span = pgd.bounds[1] - pgd.bounds[0]
    reach = span if isinstance(pgd.ball, Linf) else span * data.x[0].numel() ** 0.5
    left = ~broken(replace(pgd, ball=replace(pgd.ball, eps=reach)))
    blind = torch.tensor([name == "square" for name in strongest.by])
    found = (flat(model, data.x, data.y), blind, one_step, saved, left)
    return dict(zip(SIGNS, found, strict=True))


def sentences(shown: Mapping[str, int], n: int) -> list[str]:
    """One sentence for each sign that more samples of ``n`` show than is tolerated; counts by the names in SIGNS."""
    return [SIGNS[name].format(f"{k} of {n} samples") for name, k in shown.items() if k > TOLERATED * n]
