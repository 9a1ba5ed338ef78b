"""A lower bound on epsilon from one training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import FittedInference
from assay.privacy.loss_threshold import LossThreshold
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

STEPS = 36  # halvings of an interval of length one


@dataclass(frozen=True)
class OneRunResult:
    """``epsilon`` is the lower bound; of ``canaries`` ``guesses`` were guessed and ``right`` of these rightly."""

    epsilon: float
    canaries: int
    guesses: int
    right: int
    delta: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class OneRunAudit:
    """How private a training can at most be, from guesses which canaries it saw (Steinke, Nasr & Jagielski, 2023,
    arXiv:2305.08846, theorem 5.2).

    Of m canaries each is in the training data with probability 1/2, independently. An auditor guesses r of them (in or
    out) from the outcome and abstains on the others. If the training is (eps, delta)-DP in the presence of a single
    sample, then with B ~ Binomial(r, e^eps / (1 + e^eps))

        P[v or more of the guesses are right] <= P[B >= v] + 2 m delta max_{1 <= i <= v} P[v > B >= v - i] / i.

    ``epsilon`` is the largest eps that this rejects at 1 - ``confidence``: a lower bound on the true eps with that
    confidence. How many are guessed must not depend on what is right. ``delta`` in [0, 1], ``confidence`` in (0, 1).

    The bound is about the training as it was audited: it can show that a claimed eps is wrong, and never that it is
    right. It holds whichever eps the search over the bound stops at, as a DP training is DP for every larger eps too.
    With all of r guesses right it cannot exceed log(q / (1 - q)) with q = (1 - confidence)^(1/r).
    """

    kind: ClassVar[str] = "function"

    delta: float = 1e-5
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not (0 <= self.delta <= 1 and 0 < self.confidence < 1):
            raise InputError(
                f"OneRunAudit: delta={self.delta}, confidence={self.confidence}; "
                "expected delta in [0, 1], confidence in (0, 1)"
            )

    def p_value(self, epsilon: float, *, canaries: int, guesses: int, right: int) -> float:
        """The theorem's bound, at most 1, on the probability of ``right`` or more right guesses under ``epsilon``."""
        q = 1 / (1 + math.exp(-epsilon))
        bound = float(stats.binom.sf(right - 1, guesses, q))
        if self.delta > 0 and right:
            window = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, q)) / np.arange(1, right + 1)
            bound += 2 * canaries * self.delta * float(window.max())
        return min(bound, 1.0)

    def epsilon(self, *, canaries: int, guesses: int, right: int) -> float:
        """The lower bound; 0 where nothing is rejected. InputError unless 0 <= right <= guesses <= canaries."""
        if not 0 <= right <= guesses <= canaries or canaries < 1:
            raise InputError(
                f"OneRunAudit: {right} right of {guesses} guesses on {canaries} canaries; "
                "expected 0 <= right <= guesses <= canaries, canaries >= 1"
            )

        def rejected(epsilon: float) -> bool:
            return self.p_value(epsilon, canaries=canaries, guesses=guesses, right=right) <= 1 - self.confidence

        if not rejected(0.0):
            return 0.0
        low, step = 0.0, 1.0
        while rejected(low + step):
            low, step = low + step, 2 * step
        for _ in range(STEPS):
            step /= 2
            low += step if rejected(low + step) else 0.0
        return low

    def guess(self, scores: Float[Tensor, " m"], included: Bool[Tensor, " m"], *, guesses: int) -> OneRunResult:
        """The bound when the ``guesses`` // 2 highest of ``scores`` are guessed in, the as many lowest out."""
        m = len(included)
        half = guesses // 2
        if scores.shape != included.shape or not torch.isfinite(scores).all() or not 2 <= guesses <= m:
            raise InputError(
                f"OneRunAudit: scores {tuple(scores.shape)} for {m} canaries, {guesses} guesses; "
                f"expected a finite score for each, 2 to {m} guesses"
            )
        order = scores.argsort(stable=True)
        right = int((~included[order[:half]]).sum() + included[order[m - half :]].sum())
        epsilon = self.epsilon(canaries=m, guesses=2 * half, right=right)
        return OneRunResult(epsilon, m, 2 * half, right, self.delta, self.confidence)

    def run(
        self,
        train: Callable[[Data], nn.Module],
        data: Data,
        canaries: Data,
        *,
        guesses: int,
        seed: int,
        attack: FittedInference | None = None,
    ) -> OneRunResult:
        """Train once on ``data`` and those canaries that a fair coin picks for each, and guess which these were.

        ``train`` is given the training data; ``attack`` scores the canaries (their loss where there is none). The
        coins follow from ``seed`` and the canaries' indices. InputError where an index names two samples.
        """
        index = torch.cat((data.index, canaries.index))
        if len(index.unique()) < len(index):
            raise InputError("OneRunAudit: indices of data and canaries repeat; expected one name for each sample")
        included = Draws(seed, "canaries", canaries.index).integers(2, 1)[:, 0].bool()
        picked = canaries[included]
        fields = {k: torch.cat((v, picked.fields[k])) for k, v in data.fields.items()}
        x, y, index = (torch.cat((getattr(data, k), getattr(picked, k))) for k in ("x", "y", "index"))
        model = train(Data(x, y, data.classes, data.bounds, f"{data.name} with canaries", index, fields))
        scores = (LossThreshold() if attack is None else attack).score(model, canaries)
        return self.guess(scores, included, guesses=guesses)
