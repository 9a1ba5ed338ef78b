"""Catastrophic overfitting of single-step adversarial training: its verdict, and a monitor that warns of it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses import AAERLoss
from assay.losses.pairs import check_pair
from assay.runtime.errors import InputError
from assay.training import State

SUMS = ("n", "n_abnormal", "ce", "shift_abnormal", "shift_normal")


def overfits_catastrophically(fgsm: float, pgd: float) -> bool:
    """Whether accuracies under FGSM and PGD show a collapse: more than 0.25 apart, or over 0.5 and under 0.05.

    Raises InputError for numbers that are no accuracies.
    """
    if not (0 <= fgsm <= 1 and 0 <= pgd <= 1):
        raise InputError(f"overfits_catastrophically: accuracies {fgsm} and {pgd}; expected numbers in [0, 1]")
    return fgsm - pgd > 0.25 or (pgd < 0.05 and fgsm > 0.5)


class AAEMonitor:
    """Abnormal samples epoch by epoch (Lin et al., 2023, arXiv:2404.08154, section 3.1): many warn of a collapse.

    As a hook of training (``hooks=[monitor]``) it reads what SingleStepAT logs; a loop of one's own calls ``update``
    for every batch and ``close`` after each epoch. ``history`` holds for each epoch "share", the part of samples whose
    loss the step lowered, "ce_gap", by how much on average, and "logit_shift_abnormal" and "logit_shift_normal", the
    mean squared moves of their logits and of the others' (0 where there are none).
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self._sums = dict.fromkeys(SUMS, 0.0)
        self._epoch = 0

    @staticmethod
    def measure(
        logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], logits_before: Float[Tensor, "n c"]
    ) -> dict[str, float]:
        """Sums over one batch: of samples, of abnormal ones, of their losses' falls, of both sets' moves."""
        check_pair("AAEMonitor", logits, logits_before, target)
        terms = AAERLoss().terms(logits_before.detach().float(), logits.detach().float(), target)
        n, a = float(len(target)), float(terms["n_abnormal"])
        falls, abnormal, normal = (
            float(terms[name]) for name in ("ce_gap", "logit_shift_abnormal", "logit_shift_normal")
        )
        return dict(zip(SUMS, (n, a, a * falls, a * abnormal, (n - a) * normal), strict=True))

    def update(
        self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], logits_before: Float[Tensor, "n c"]
    ) -> None:
        """Count one batch, of logits after and before the attack's step."""
        self._add(self.measure(logits, target, logits_before))

    def close(self) -> dict[str, float]:
        """End the epoch; gives its entry of ``history``. Raises InputError where nothing was counted."""
        s = self._sums
        if s["n"] == 0:
            raise InputError("AAEMonitor: no batch was counted in this epoch; expected at least one")
        abnormal, normal = max(s["n_abnormal"], 1.0), max(s["n"] - s["n_abnormal"], 1.0)
        found = {
            "share": s["n_abnormal"] / s["n"],
            "ce_gap": s["ce"] / abnormal,
            "logit_shift_abnormal": s["shift_abnormal"] / abnormal,
            "logit_shift_normal": s["shift_normal"] / normal,
        }
        self.history.append(found)
        self._sums = dict.fromkeys(SUMS, 0.0)
        return found

    def __call__(self, models: Mapping[str, nn.Module], state: State) -> None:
        """Count the step just made; the last step of an epoch closes it."""
        step = next((r for r in reversed(state.log) if "n_abnormal" in r), None)
        if step is None:
            raise InputError("AAEMonitor: the run logs no abnormal samples; expected training by SingleStepAT")
        if state.epoch > self._epoch:
            self.close()
            self._epoch = state.epoch
        self._add(step)
        if state.step >= state.total:
            self.close()

    def _add(self, sums: Mapping[str, float]) -> None:
        self._sums = {name: value + sums[name] for name, value in self._sums.items()}
