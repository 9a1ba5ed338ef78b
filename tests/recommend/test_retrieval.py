"""Exact checks of the measures of retrieval and of the dual encoder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from assay.recommend import (
    DualEncoder,
    global_auc,
    mean_reciprocal_rank,
    pairwise_auc,
    per_query_auc,
    pooled_topk_auc,
    separation_report,
)
from assay.runtime.errors import InputError


def _sample(seed: int = 0, b: int = 6, m: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(8, (b, m), generator=g).double()  # many ties
    relevance = torch.rand(b, m, generator=g) < 0.2
    relevance[:, 0], relevance[:, 1] = True, False
    return scores + relevance, relevance


@given(st.integers(0, 1000))
def test_auc_is_scikit_learns(seed: int) -> None:
    scores, relevance = _sample(seed)
    expected = roc_auc_score(relevance.flatten(), scores.flatten())
    assert pairwise_auc(scores[relevance], scores[~relevance]) == pytest.approx(expected, abs=1e-12)
    assert global_auc(scores, relevance) == pytest.approx(expected, abs=1e-12)
    each = [roc_auc_score(r, s) for s, r in zip(scores, relevance, strict=True)]
    assert per_query_auc(scores, relevance) == pytest.approx(np.mean(each), abs=1e-12)


def test_offsets_move_the_global_auc_alone() -> None:
    scores, relevance = _sample()
    moved = scores + 100 * torch.arange(6).double()[:, None]
    assert per_query_auc(moved, relevance) == pytest.approx(per_query_auc(scores, relevance))
    assert global_auc(moved, relevance) < global_auc(scores, relevance)
    found = separation_report(moved, relevance)
    assert found.gap == pytest.approx(per_query_auc(moved, relevance) - global_auc(moved, relevance))


def test_the_pooled_protocol_takes_the_best_others() -> None:
    scores, relevance = _sample()
    others = [sorted(scores[i][~relevance[i]].tolist(), reverse=True)[:5] for i in range(6)]
    expected = pairwise_auc(scores[relevance], torch.tensor(others).flatten())
    assert pooled_topk_auc(scores, relevance, k=5) == pytest.approx(expected)
    assert pooled_topk_auc(scores, relevance, k=500) == pytest.approx(global_auc(scores, relevance))


def test_rank_and_rates() -> None:
    scores = torch.tensor([[3.0, 2, 1], [1, 3, 2], [2, 2, 1]])
    relevance = torch.tensor([[True, False, False]] * 3)
    assert mean_reciprocal_rank(scores, relevance) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert mean_reciprocal_rank(scores, relevance, k=2) == pytest.approx((1 + 0 + 1 / 2) / 3)
    g = torch.Generator().manual_seed(0)
    scores, relevance = torch.randn(1, 4000, generator=g), torch.zeros(1, 4000, dtype=torch.bool)
    relevance[0, :1000] = True
    scores[0, :1000] += 2
    found = separation_report(scores, relevance)
    assert np.isnan(found.tpr_1e3)  # three negatives beyond it say nothing
    assert found.tpr_1e2 == pytest.approx(0.372, abs=0.06)  # P(N(2, 1) > 2.326)
    assert found.overlap == pytest.approx(0.317, abs=0.05)  # 2 P(N(0, 1) > 1)


@pytest.mark.parametrize("negatives", [1000, 1050, 12_345])
def test_rates_are_those_of_the_roc_curve(negatives: int) -> None:
    g = torch.Generator().manual_seed(negatives)
    scores, relevance = torch.randn(1, negatives + 300, generator=g), torch.zeros(1, negatives + 300, dtype=torch.bool)
    relevance[0, :300] = True
    scores[0, :300] += 1.5
    fpr, tpr, _ = roc_curve(relevance[0], scores[0], drop_intermediate=False)
    found = separation_report(scores, relevance)
    assert found.tpr_1e2 == pytest.approx(tpr[fpr <= 0.01].max())
    assert np.isnan(found.tpr_1e3) or found.tpr_1e3 == pytest.approx(tpr[fpr <= 0.001].max())


def test_bad_input() -> None:
    scores, relevance = _sample()
    nan = scores.clone()
    nan[0, 0] = torch.nan
    wrong = ((nan, relevance), (scores, relevance.long()), (scores, relevance[:2]), (scores, relevance & False))
    for measure in (global_auc, per_query_auc, pooled_topk_auc, mean_reciprocal_rank, separation_report):
        for bad in wrong:
            with pytest.raises(InputError):
                measure(*bad)
    with pytest.raises(InputError):
        pairwise_auc(scores[0], scores[0, :0])
    with pytest.raises(InputError):
        pooled_topk_auc(scores, relevance, k=0)
    with pytest.raises(InputError, match="k=0"):
        mean_reciprocal_rank(scores, relevance, k=0)
    apart = torch.zeros_like(relevance)
    apart[0] = True
    with pytest.raises(InputError, match="no query"):
        per_query_auc(scores, apart)


class _Tokens(nn.Module):
    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.stack((ids, ids**2), 2).float())


def test_dual_encoder_scores_and_pools() -> None:
    q, d = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.allclose(DualEncoder(nn.Identity(), nn.Identity(), "dot")(q, d), q @ d.T)
    cosines = torch.nn.functional.cosine_similarity(q[:, None], d[None], dim=2)
    assert torch.allclose(DualEncoder(nn.Identity(), nn.Identity())(q, d), cosines, atol=1e-6)
    tokens = {"ids": torch.tensor([[1, 3, 9], [2, 2, 2]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    found = DualEncoder(_Tokens(), nn.Identity(), "dot")(tokens, torch.eye(2))
    assert torch.allclose(found, torch.tensor([[2.0, 5.0], [2.0, 4.0]]))
    with pytest.raises(InputError):
        DualEncoder(nn.Identity(), nn.Identity(), "l2")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        DualEncoder(nn.Identity(), nn.Identity())(q, d[:, :2])
