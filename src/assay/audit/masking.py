"""Signs that gradients mislead attacks, so that a model looks more robust than it is."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from assay.attacks import FGSM, PGD, AttackResult, Linf, Untargeted
from assay.attacks.base import OBJECTIVES
from assay.data import Data
from assay.runtime.inference import device_of, evaluating

TOLERATED = 0.03  # the share of samples that a sign may be seen on by chance of starts and steps


def flat_share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of samples at which the gradient of the log-odds of y is exactly zero."""
    with evaluating(model), torch.enable_grad():
        z = x.detach().to(device_of(model)).requires_grad_()
        (grad,) = torch.autograd.grad(
            OBJECTIVES["ce"](model(z), Untargeted(y.to(z.device))).sum(), z, allow_unused=True
        )
    return 1.0 if grad is None else float((grad.flatten(1) == 0).all(1).float().mean())


def signs_of_masking(model: nn.Module, data: Data, pgd: PGD, strongest: AttackResult, *, seed: int) -> list[str]:
    """One sentence for each sign of masked gradients (Athalye et al., 2018, arXiv:1802.00420, section 3.1).

    ``pgd`` is the attack under suspicion and ``strongest`` what AutoAttack found on the same ``data`` in the same ball.
    The signs: samples without a gradient; a search that takes no gradient breaks what gradients do not; one step breaks
    what many do not; a ball twice as large saves samples; an attack without limit leaves some.
    """
    goal, n = Untargeted(data.y), len(data)

    def broken(attack: PGD | FGSM) -> Tensor:
        return attack.run(model, data.x, goal, seed=seed, index=data.index).success

    pgd_broke = broken(pgd)
    one_step = broken(FGSM(ball=pgd.ball, bounds=pgd.bounds)) & ~pgd_broke
    saved = pgd_broke & ~broken(replace(pgd, ball=replace(pgd.ball, eps=2 * pgd.ball.eps)))
    span = pgd.bounds[1] - pgd.bounds[0]
    reach = span if isinstance(pgd.ball, Linf) else span * data.x[0].numel() ** 0.5
    left = ~broken(replace(pgd, ball=replace(pgd.ball, eps=reach)))
    blind = torch.tensor([name == "square" for name in strongest.by])
    signs = {
        "the gradient is exactly zero at {}": round(n * flat_share(model, data.x, data.y)),
        "Square, which takes no gradient, breaks {} that APGD and FAB do not": int(blind.sum()),
        "one step breaks {} that PGD does not": int(one_step.sum()),
        "a ball twice as large saves {} from PGD": int(saved.sum()),
        "PGD without a limit on the perturbation leaves {} right": int(left.sum()),
    }
    return [text.format(f"{k} of {n} samples") for text, k in signs.items() if k > TOLERATED * n]
