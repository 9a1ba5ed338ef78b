"""Exact checks of SupReMix: mixtures written out, the loss written out, and what it reduces to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.losses import MixIndex, SupConLoss, SupReMixLoss, WeightedSupConRegressionLoss, make_mixtures
from assay.losses.supremix import similarities
from assay.papers import supremix as paper
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

LIMITS = {"label": 1e-9, "gram": 1e-12, "supcon": 1e-12, "detached": 1e-12}


def _batch(n: int = 14, seed: int = 0, top: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(n, 5, generator=g, dtype=torch.float64), dim=1)
    return z, torch.randint(top, (n,), generator=g).double()


def _mixtures(y: torch.Tensor, **options: object) -> MixIndex:
    return make_mixtures(y, generator=torch_rng(0, "test"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_identities(seed: int) -> None:
    found = paper.exact(SupReMixLoss, seed)
    assert set(found) == set(LIMITS)
    assert all(found[name] <= limit for name, limit in LIMITS.items()), found
    for sham in paper.PAPER.shams:
        wrong = paper.exact(paper.RULES[sham], seed)
        assert wrong["label"] > 0.5
        assert wrong["gram"] <= 1e-12


@given(st.lists(st.integers(0, 20), min_size=2, max_size=14), st.integers(1, 12))
def test_mixtures_are_the_triples_of_the_definition(labels: list[int], window: int) -> None:
    y = torch.tensor(labels).double()
    n = range(len(y))
    mix = _mixtures(y, window=window)
    triples = list(zip(mix.anchor.tolist(), mix.j.tolist(), mix.k.tolist(), strict=True))
    at = mix.is_positive.tolist()
    assert sorted(t for t, p in zip(triples, at, strict=True) if not p) == [
        (i, i, k) for i in n for k in n if labels[k] != labels[i]
    ]
    assert sorted(t for t, p in zip(triples, at, strict=True) if p) == [
        (i, j, k)
        for i in n
        for j in n
        for k in n
        if labels[i] - window < labels[j] < labels[i] < labels[k] < labels[i] + window
    ]
    assert ((mix.alpha > 0) & (mix.alpha < 1)).all()
    assert torch.allclose(mix.label[mix.is_positive], y[mix.anchor[mix.is_positive]])


def test_a_cap_keeps_distinct_pairs_of_each_anchor() -> None:
    y = torch.arange(30).double()
    whole, capped = (_mixtures(y, window=9, mix_neg=False, max_pos=m) for m in (None, 10))
    every, some = (set(zip(m.anchor.tolist(), m.j.tolist(), m.k.tolist(), strict=True)) for m in (whole, capped))
    assert len(some) == len(capped.anchor)
    assert some < every
    sizes = torch.bincount(whole.anchor, minlength=30).clamp_max(10)
    assert torch.equal(torch.bincount(capped.anchor, minlength=30), sizes)
    assert _mixtures(y, mix_neg=False, mix_pos=False).anchor.shape == (0,)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("weight", ["l1_inv", "l1", "l2_inv", "l2", None])
def test_the_loss_written_out(weight: str | None, renormalize: bool) -> None:
    z, y = _batch()
    loss = SupReMixLoss(0.2, 4, weight=weight, renormalize=renormalize, generator=torch_rng(0, "test"))  # type: ignore[arg-type]
    found = loss(z, y)
    mix = _mixtures(y, window=4)
    w = {None: lambda d: 1.0, "l1_inv": lambda d: d + 1, "l1": lambda d: 1 / (d + 1)}
    w |= {"l2_inv": lambda d: d * d + 1, "l2": lambda d: 1 / (d * d + 1)}
    terms = []
    for i in range(len(y)):
        bottom, top = 0.0, []
        for a in range(len(y)):
            if a != i:
                s = float(z[i] @ z[a]) / 0.2
                bottom += w[weight](abs(float(y[i] - y[a]))) * math.exp(s)
                top += [s] if y[a] == y[i] else []
        for m in (mix.anchor == i).nonzero()[:, 0].tolist():
            point = mix.alpha[m] * z[mix.j[m]] + (1 - mix.alpha[m]) * z[mix.k[m]]
            s = float(z[i] @ (F.normalize(point, dim=0) if renormalize else point)) / 0.2
            bottom += w[weight](abs(float(y[i] - mix.label[m]))) * math.exp(s)
            top += [s] if mix.is_positive[m] else []
        terms += [math.log(bottom) - sum(top) / len(top)] if top else []
    assert float(found) == pytest.approx(sum(terms) / len(terms), abs=1e-10)
    assert loss.skipped == len(y) - len(terms)


def test_without_mixtures_it_is_the_weighted_loss_and_without_weights_supcon() -> None:
    z, y = _batch()
    plain = SupReMixLoss(0.2, mix_neg=False, mix_pos=False)
    assert torch.allclose(plain(z, y), WeightedSupConRegressionLoss(0.2)(z, y))
    bare = WeightedSupConRegressionLoss(0.2, weight=None)
    assert torch.allclose(bare(z, y), SupConLoss(0.2)(z, y.long()))
    views = torch.stack((z, z.flip(1)), 1)
    assert torch.allclose(bare(views, y), SupConLoss(0.2)(views.flatten(0, 1), y.long().repeat_interleave(2)))


def test_order_of_the_batch_does_not_matter_for_positives() -> None:
    z, y = _batch()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    loss = SupReMixLoss(0.2, 4, mix_neg=False)
    assert torch.allclose(loss(z, y), loss(z[order], y[order]))
    assert torch.allclose(loss(z, y), loss(3 * z, y))


def test_mixtures_carry_no_gradient() -> None:
    z, y = _batch()
    free = z.clone().requires_grad_()
    mix = _mixtures(y)
    value = similarities(free, mix)[mix.anchor == 0].sum()
    (gradient,) = torch.autograd.grad(value, free)
    assert not gradient[1:].any()
    assert gradient[0].norm() > 0


def test_labels_within_the_tolerance_are_positives() -> None:
    z, y = _batch()
    near = y + torch.linspace(-0.1, 0.1, len(y))
    assert torch.allclose(
        WeightedSupConRegressionLoss(0.2, weight=None, tolerance=0.25)(z, near),
        WeightedSupConRegressionLoss(0.2, weight=None)(z, y),
    )
    mix = _mixtures(near, tolerance=0.25)
    assert ((near[mix.anchor] - near[mix.k]).abs() > 0.25).all()


def test_anchors_without_positives_are_skipped() -> None:
    z, _ = _batch(4)
    loss = WeightedSupConRegressionLoss()
    free = z.clone().requires_grad_()
    value = loss(free, torch.arange(4))
    assert float(value.detach()) == 0
    assert loss.skipped == 4
    assert not torch.autograd.grad(value, free)[0].any()


def test_seeded_mixtures_leave_the_global_generator() -> None:
    z, y = _batch()
    state = torch.random.get_rng_state()
    one, two = (SupReMixLoss(generator=torch_rng(k, "m"))(z, y) for k in (0, 1))
    assert torch.equal(one, SupReMixLoss(generator=torch_rng(0, "m"))(z, y))
    assert one != two
    assert torch.equal(state, torch.random.get_rng_state())


def test_bad_input() -> None:
    z, y = _batch()
    for options in (
        {"temperature": 0},
        {"window": 0},
        {"beta": (0, 1)},
        {"weight": "far"},
        {"max_pos": 0},
        {"tolerance": -1},
    ):
        with pytest.raises(InputError):
            SupReMixLoss(**options)
    nan = y.clone()
    nan[0] = math.nan
    for bad in ((z, nan), (z * math.inf, y), (z[:1], y[:1]), (z, y[:-1]), (z[:, :1], y), (z, y > 3), (z.long(), y)):
        with pytest.raises(InputError):
            SupReMixLoss()(*bad)
    for labels in (nan, y[:, None], y > 3):
        with pytest.raises(InputError, match="expected"):
            make_mixtures(labels)
    for tolerance in (-1.0, math.nan):
        with pytest.raises(InputError, match="tolerance"):
            make_mixtures(y, tolerance=tolerance)
