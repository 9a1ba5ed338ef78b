"""What human votes say about suspect test labels, and how the ranking of models changes with noise prevalence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from assay.runtime.errors import InputError

Status = Literal["given", "guessed", "both", "neither", "no agreement"]
OPTIONS: tuple[Status, ...] = ("given", "guessed", "both", "neither")


def consensus_from_votes(votes: Sequence[Mapping[str, int]], min_votes: int = 3) -> list[Status]:
    """The verdict on each suspect label (Northcutt et al., 2021, arXiv:2103.14749, section 4).

    Each item counts the people who chose "given", "guessed", "both" or "neither"; absent options count 0. The first of
    these with ``min_votes`` wins, "no agreement" where none has them: "given" confirms the label (also where the
    guess is that label), every other verdict is an error, and "guessed" is one that can be corrected.
    """
    if min_votes < 1:
        raise InputError(f"consensus: min_votes={min_votes}; expected at least 1")
    verdicts: list[Status] = []
    for position, counts in enumerate(votes):
        odd = [k for k, v in counts.items() if k not in OPTIONS or v < 0]
        if odd:
            raise InputError(f"consensus: item {position} counts {dict(counts)}; expected votes >= 0 for {OPTIONS}")
        verdicts.append(next((k for k in OPTIONS if counts.get(k, 0) >= min_votes), "no agreement"))
    return verdicts


@dataclass(frozen=True)
class Standing:
    """One model's accuracy in [0, 1] on the benign items and, by original and corrected label, on the correctable."""

    benign: float
    original: float
    corrected: float


def corrected_benchmark(
    predictions: Mapping[str, Int[np.ndarray, " n"]],
    given: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
    verdicts: Sequence[Status],
    guessed: Int[np.ndarray, " m"],
) -> dict[str, Standing]:
    """The standing of each model on a test set (n,) of which the items ``rows`` (m,) were judged (section 5).

    Benign are the items that were not judged or whose label was confirmed; errors without a single corrected label
    are left out. Raises InputError for sizes that differ, repeated or unknown rows, or no correctable item.
    """
    y, guess = np.asarray(given), np.asarray(guessed)
    at = np.asarray(rows, dtype=None if len(rows) else np.int64)
    if at.dtype.kind not in "iu":
        raise InputError(f"benchmark: judged rows are {at.dtype}; expected integers")
    if y.ndim != 1 or at.ndim != 1 or guess.shape != at.shape or len(verdicts) != len(at):
        raise InputError(f"benchmark: {at.shape} rows, {len(verdicts)} verdicts, {guess.shape} guesses; expected (m,)")
    if len(np.unique(at)) != len(at) or (len(at) and not 0 <= at.min() <= at.max() < len(y)):
        raise InputError(f"benchmark: judged rows repeat or leave [0, {len(y)}); expected each item at most once")
    status = np.asarray(verdicts, dtype=str)
    fixable, benign = at[status == "guessed"], np.ones(len(y), bool)
    benign[at[status != "given"]] = False
    if not len(fixable) or not benign.any():
        raise InputError("benchmark: no correctable or no benign item; expected at least one of each")
    standings = {}
    for name, predicted in predictions.items():
        p = np.asarray(predicted)
        if p.shape != y.shape:
            raise InputError(f"benchmark: predictions of {name!r} have shape {p.shape}; expected {y.shape}")
        standings[name] = Standing(
            benign=float((p == y)[benign].mean()),
            original=float((p == y)[fixable].mean()),
            corrected=float((p[fixable] == guess[status == "guessed"]).mean()),
        )
    return standings


def noise_prevalence_curve(
    benign: float, correctable: float, prevalence: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Expected accuracy (k,) once benign items are dropped at random until errors make up ``prevalence``, in [0, 1]."""
    share = np.asarray(prevalence, float)
    for what, value in (("accuracies", np.array([benign, correctable], float)), ("prevalence", share)):
        if not ((value >= 0) & (value <= 1)).all():
            raise InputError(f"prevalence curve: {what} {value}; expected numbers in [0, 1]")
    return (1 - share) * benign + share * correctable


def crossover_prevalence(benign: float, correctable: float, other_benign: float, other_correctable: float) -> float:
    """The prevalence in [0, 1] at which two models have the same accuracy; NaN where none or every one is such."""
    noise_prevalence_curve(benign, correctable, np.zeros(1))
    noise_prevalence_curve(other_benign, other_correctable, np.zeros(1))
    ahead, behind = benign - other_benign, other_correctable - correctable
    if ahead + behind == 0 or ahead * behind < 0:
        return float("nan")
    return ahead / (ahead + behind)
