"""What a language model still knows of replies, in the form that open-unlearning's evaluations write and read.

A result is {"agg_value": number, "value_by_index": {"0": {...}, ...}}, with the names of TOFU's evaluation (Maini et
al., 2024, arXiv:2401.06121; Dorna et al., 2025, arXiv:2506.12618). ROUGE needs the tokenizer and generated text, and is
not here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import ks_2samp
from torch import Tensor, nn

from assay.language.replies import IGNORED, Replies, reply_logits, token_logps
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating

Result = dict[str, Any]
TINY = 1e-10  # keeps the ratios finite, as there
BETTER = ("closer_to_1_better", "true_better")


@torch.no_grad()
def _rows(model: nn.Module, replies: Replies, fn: Callable[[Tensor, Replies], Tensor], batch_size: int) -> np.ndarray:
    """``fn(logits, batch)`` for all replies, in evaluation mode, float64."""
    if batch_size < 1:
        raise InputError(f"unlearning scores: batch_size={batch_size}; expected at least 1")
    device, parts = device_of(model), []
    with evaluating(model):
        for start in range(0, len(replies), batch_size):
            batch = replies[start : start + batch_size].to(device)
            parts.append(fn(reply_logits(model, batch).double(), batch).cpu())
    found = torch.cat(parts)
    if not torch.isfinite(found).all():
        raise InputError(f"unlearning scores: not finite on {int((~torch.isfinite(found)).sum())} replies")
    return found.numpy()


def _result(values: np.ndarray, aggregate: float, name: str = "score") -> Result:
    by_index = {str(i): {name: v} for i, v in enumerate(values.tolist())}
    return {"agg_value": float(aggregate), "value_by_index": by_index}


def _mean_losses(model: nn.Module, replies: Replies, batch_size: int) -> np.ndarray:
    return -_rows(model, replies, lambda z, b: token_logps(z, b.labels), batch_size)


def probability(model: nn.Module, replies: Replies, *, batch_size: int = 32) -> Result:
    """p(reply | prompt)^(1 / tokens) of each reply, in [0, 1], beside its mean loss in nats; their mean."""
    losses = _mean_losses(model, replies, batch_size)
    result = _result(np.exp(-losses), float(np.exp(-losses).mean()), "prob")
    for row, loss in zip(result["value_by_index"].values(), losses.tolist(), strict=True):
        row["avg_loss"] = loss
    return result


def _hits(logits: Float[Tensor, "n t v"], batch: Replies, eos: bool) -> tuple[Bool[Tensor, "n t"], Bool[Tensor, "n t"]]:
    """Where the likeliest next token is the reply's, and where it counts: everywhere in it, but for the last one where
    that is the end of the sequence."""
    nxt = batch.labels[:, 1:]
    counts = nxt != IGNORED
    if eos:
        later = counts.flip(1).cumsum(1).flip(1) > 1
        counts = counts & later
    if not counts.any(1).all():
        raise InputError("unlearning scores: a reply of its end alone; expected two tokens or more (or eos=False)")
    return (logits[:, :-1].argmax(2) == nxt) & counts, counts


def exact_memorization(model: nn.Module, replies: Replies, *, eos: bool = True, batch_size: int = 32) -> Result:
    """The share of a reply's tokens that are the likeliest after those before (Tirumala et al., 2022,
    arXiv:2205.10770), in [0, 1]. ``eos``: each reply ends with the end of the sequence, which does not count."""

    def share(logits: Tensor, batch: Replies) -> Tensor:
        hit, counts = _hits(logits, batch, eos)
        return hit.sum(1).double() / counts.sum(1)

    values = _rows(model, replies, share, batch_size)
    return _result(values, float(values.mean()))


def extraction_strength(model: nn.Module, replies: Replies, *, eos: bool = True, batch_size: int = 32) -> Result:
    """1 - k / L, with k the fewest of a reply's L tokens that must be given so that greedy decoding gives all others
    (after Carlini et al., 2021, arXiv:2012.07805), in [0, 1]. 0 where not even the last token
    follows; open-unlearning's own code gives 1 / L there. ``eos``: see exact_memorization."""

    def strength(logits: Tensor, batch: Replies) -> Tensor:
        hit, counts = _hits(logits, batch, eos)
        last_miss = (counts.cumsum(1) * (counts & ~hit)).amax(1)
        return 1 - last_miss.double() / counts.sum(1)

    values = _rows(model, replies, strength, batch_size)
    return _result(values, float(values.mean()))


def truth_ratio(
    model: nn.Module,
    correct: Replies,
    wrong: Sequence[Replies],
    *,
    better: Literal["closer_to_1_better", "true_better"] = "closer_to_1_better",
    batch_size: int = 32,
) -> Result:
    """R = p(wrong) / p(correct) of each prompt, >= 0, with p the exponential of minus the mean loss a token, the wrong
    replies' losses averaged first (Maini et al., 2024, as open-unlearning computes it).

    ``wrong`` holds sets of perturbed replies, row by row to the prompts of ``correct``. The aggregate is the mean of
    min(R, 1 / R) (what was forgotten: neither is likelier) or of max(0, 1 - R) (what was not). InputError where the
    sets have other sizes.
    """
    if better not in BETTER:
        raise unknown("aggregate of truth_ratio", str(better), BETTER)
    if not wrong or any(len(w) != len(correct) for w in wrong):
        sizes = [len(w) for w in wrong]
        raise InputError(f"truth_ratio: {sizes} wrong replies to {len(correct)} prompts; expected one set or more")
    right = _mean_losses(model, correct, batch_size)
    others = np.stack([_mean_losses(model, w, batch_size) for w in wrong]).mean(0)
    ratio = np.exp(-others) / (np.exp(-right) + TINY)
    each = np.minimum(ratio, 1 / (ratio + TINY)) if better == "closer_to_1_better" else np.maximum(0, 1 - ratio)
    return _result(ratio, float(each.mean()))


def forget_quality(own: Result, retrained: Result) -> Result:
    """The p-value of the two-sample Kolmogorov-Smirnov test that truth ratios (results of ``truth_ratio`` on the same
    replies) are as those of a model that never saw them, in [0, 1]; near 0 the model is not like that one."""
    samples = [1 / (np.array([r["score"] for r in x["value_by_index"].values()]) + TINY) for x in (own, retrained)]
    return {"agg_value": float(ks_2samp(*samples).pvalue)}


def tofu_evaluation(
    model: nn.Module,
    forget: Replies,
    *,
    paraphrased: Replies | None = None,
    perturbed: Sequence[Replies] = (),
    retrained: Mapping[str, Result] | None = None,
    batch_size: int = 32,
) -> dict[str, Result]:
    """The results that need no tokenizer, under the names of TOFU's evaluation.

    ``paraphrased`` and ``perturbed`` replies to the same prompts (the former ``forget`` itself where there is none)
    give the truth ratio; with ``retrained``, the evaluation of a model that never saw ``forget``, also the forget
    quality.
    """
    results = {
        "forget_Q_A_Prob": probability(model, forget, batch_size=batch_size),
        "exact_memorization": exact_memorization(model, forget, batch_size=batch_size),
        "extraction_strength": extraction_strength(model, forget, batch_size=batch_size),
    }
    if perturbed:
        correct = forget if paraphrased is None else paraphrased
        results["forget_truth_ratio"] = truth_ratio(model, correct, perturbed, batch_size=batch_size)
        if retrained is not None and "forget_truth_ratio" in retrained:
            quality = forget_quality(results["forget_truth_ratio"], retrained["forget_truth_ratio"])
            results["forget_quality"] = quality
    return results


def write_evaluation(results: Mapping[str, Result], folder: str | Path, *, name: str = "TOFU") -> tuple[Path, Path]:
    """Write NAME_EVAL.json (all) and NAME_SUMMARY.json (the aggregates) to ``folder``, and say where."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    summary = {k: r["agg_value"] for k, r in results.items()}
    paths = target / f"{name}_EVAL.json", target / f"{name}_SUMMARY.json"
    for path, content in zip(paths, (dict(results), summary), strict=True):
        path.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    return paths
