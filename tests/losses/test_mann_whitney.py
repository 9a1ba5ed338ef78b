"""Exact checks of the Mann-Whitney and the contrastive loss of score matrices."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.losses import MannWhitneyLoss, MultipleNegativesLoss
from assay.papers import mw_loss as paper
from assay.runtime.errors import InputError


def _scores(b: int = 5, m: int = 8, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(b, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_both_losses_written_out(tau: float) -> None:
    s, y = _scores(), torch.arange(5)
    pairs = [(s[i, i], s[j, k]) for i in range(5) for j in range(5) for k in range(8) if k != j]
    each = torch.stack([torch.log1p(torch.exp(-(p - n) / tau)) for p, n in pairs])
    assert torch.allclose(MannWhitneyLoss(tau)(s, y), each.mean())
    assert torch.allclose(MannWhitneyLoss(tau, "paper")(s, y), each.sum() / 5)
    own = torch.stack(
        [torch.log1p(torch.exp(-(s[i, i] - s[i, k]) / tau)) for i in range(5) for k in range(8) if k != i]
    )
    assert torch.allclose(MannWhitneyLoss(tau, pairs="within_query")(s, y), own.mean())
    assert torch.allclose(MannWhitneyLoss(tau, "paper", "within_query")(s, y), own.sum() / 5)
    assert torch.allclose(MultipleNegativesLoss(tau)(s, y), F.cross_entropy(s / tau, y))


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_only_the_global_pairs_see_a_querys_offset(seed: int, c: float) -> None:
    s, y = _scores(seed=seed), torch.arange(5)
    moved = s.clone()
    moved[0] += c
    for loss in (MultipleNegativesLoss(), MannWhitneyLoss(pairs="within_query")):
        assert torch.allclose(loss(s, y), loss(moved, y), atol=1e-9)
    assert abs(c) < 1e-3 or float(MannWhitneyLoss()(s, y) - MannWhitneyLoss()(moved, y)) != 0


def test_chunks_have_the_same_value_and_gradient() -> None:
    s = _scores().requires_grad_()
    y = torch.arange(5)
    values = [MannWhitneyLoss(0.3, chunk=c)(s, y) for c in (None, 1, 2, 100)]
    gradients = [torch.autograd.grad(v, s)[0] for v in values]
    assert all(torch.allclose(v, values[0], atol=1e-12) for v in values)
    assert all(torch.allclose(g, gradients[0], atol=1e-12) for g in gradients)


def test_ignored_entries_do_not_count() -> None:
    s, y = _scores(), torch.arange(5)
    ignore = torch.rand(s.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    other = torch.where(ignore & ~torch.eye(5, 8, dtype=torch.bool), 1e3 * torch.ones_like(s), s)
    for loss in (MultipleNegativesLoss(), MannWhitneyLoss(), MannWhitneyLoss(pairs="within_query")):
        assert torch.allclose(loss(s, y, ignore), loss(other, y, ignore))
        assert not torch.allclose(loss(s, y), loss(s, y, ignore))
        assert torch.equal(loss(s, y), loss(s, torch.eye(5, 8, dtype=torch.bool)))


def test_an_ignored_row_does_not_count() -> None:
    s, y = _scores(), torch.arange(5)
    padding = torch.zeros(5, 8, dtype=torch.bool)
    padding[3:] = True
    for loss in (MultipleNegativesLoss(), MannWhitneyLoss(), MannWhitneyLoss(pairs="within_query")):
        assert torch.allclose(loss(s, y, padding), loss(s[:3], y[:3]))


@pytest.mark.parametrize("options", [{}, {"chunk": 16}, {"reduction": "paper"}, {"pairs": "within_query"}])
def test_many_pairs_in_half_precision_do_not_overflow(options: dict[str, object]) -> None:
    s, loss = _scores(256, 300).half(), MannWhitneyLoss(**options)  # type: ignore[arg-type]
    assert torch.equal(loss(s, torch.arange(256)), loss(s.float(), torch.arange(256)))


def test_scores_over_a_small_temperature_do_not_overflow_half_precision() -> None:
    s, y, loss = (100 * _scores()).half(), torch.arange(5), MultipleNegativesLoss(1e-3)
    assert torch.equal(loss(s, y), loss(s.float(), y))


def test_a_sample_of_the_negatives_is_unbiased() -> None:
    s, y = _scores(), torch.arange(5)
    loss = MannWhitneyLoss(sample=7, generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([loss(s, y) for _ in range(2000)])
    assert abs(float(drawn.mean() - MannWhitneyLoss()(s, y))) < 4 * float(drawn.std()) / 2000**0.5
    many = MannWhitneyLoss(reduction="paper", sample=7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(many(s, y), drawn[0] * 35)


def test_embeddings_with_hard_negatives() -> None:
    q, d = _scores(4, 3, 1), _scores(6, 3, 2)
    assert torch.equal(MannWhitneyLoss().from_embeddings(q, d), MannWhitneyLoss()(q @ d.T, torch.arange(4)))
    with pytest.raises(InputError):
        MannWhitneyLoss().from_embeddings(q, d[:, :2])


@pytest.mark.parametrize("seed", range(2))
def test_identities_of_the_paper_and_its_sham(seed: int) -> None:
    found = paper.exact(None, seed, 100)
    assert found["off"] <= 1e-12
    assert found["slack"] >= 0
    assert found["chunks"] <= 1e-6
    assert paper.exact("strict-ties", seed, 20)["off"] > 0.01


def test_the_contrastive_loss_has_no_gradient_on_offsets() -> None:
    data = paper._pairs(64, 0, "train")
    assert paper.offset_gradient(paper._start("offset", 0), data) <= 1e-12
    rows = paper.oblivious(_scores(200, 200), 0)
    assert max(r["moved"] for r in rows) < 1e-6
    assert abs(rows[-1]["oblivious"] - 0.5) < 0.02


def test_bad_input() -> None:
    s, y = _scores(), torch.arange(5)
    for options in ({"temperature": 0}, {"reduction": "sum"}, {"pairs": "all"}, {"chunk": 0}, {"sample": 0}):
        with pytest.raises(InputError):
            MannWhitneyLoss(**options)
    with pytest.raises(InputError, match="global pairs only"):
        MannWhitneyLoss(sample=2, pairs="within_query")
    with pytest.raises(InputError):
        MultipleNegativesLoss(math.inf)
    none = torch.zeros(5, 8, dtype=torch.bool)
    for loss in (MultipleNegativesLoss(), MannWhitneyLoss()):
        for target, ignore in (
            (none, None),
            (~none, None),
            (y, ~none),
            (y, none[:2]),
            (none[:2], None),
            (y, none.long()),
        ):
            with pytest.raises(InputError):
                loss(s, target, ignore)
    apart = none.clone()
    apart[0] = True
    with pytest.raises(InputError, match="no query"):
        MannWhitneyLoss(pairs="within_query")(s, apart)
