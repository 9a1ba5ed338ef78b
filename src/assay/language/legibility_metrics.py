"""How well scores agree with people's comparisons of two words."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from assay.language.legibility_loss import check_pairs


def legibility_metrics(s0: Float[Tensor, " n"], s1: Float[Tensor, " n"], choice: Int[Tensor, " n"]) -> dict[str, float]:
    """f1, precision, recall and accuracy of "legible" (score > 0), and rank_accuracy (Seth et al., 2023,
    arXiv:2303.05077; the counters of the released Metrics).

    Under choice 0 or 1 the chosen word alone counts, as a positive; under 2 both are positives, under 3 both negatives.
    rank_accuracy: the share of pairs of choice 0 or 1 whose chosen word scores at least as much as the other. All in
    [0, 1], 0 where there is nothing to count (the released code adds 1e-6 to denominators instead); a score of 0 is
    not legible, in either role. Shapes and errors are those of LegibilityLoss.
    """
    check_pairs("legibility_metrics", s0, s1, choice)
    says0, says1 = s0 > 0, s1 > 0
    chosen = choice < 2
    first, second = (choice == 0) | (choice == 2), (choice == 1) | (choice == 2)
    tp = int((says0 & first).sum() + (says1 & second).sum())
    fn = int((~says0 & first).sum() + (~says1 & second).sum())
    fp = int((says0 & (choice == 3)).sum() + (says1 & (choice == 3)).sum())
    tn = int((~says0 & (choice == 3)).sum() + (~says1 & (choice == 3)).sum())
    ahead = ((choice == 0) & (s0 >= s1)) | ((choice == 1) & (s1 >= s0))
    return {
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
        "accuracy": _share(tp + tn, tp + tn + fp + fn),
        "rank_accuracy": _share(int(ahead.sum()), int(chosen.sum())),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
