"""KLoM and U-LiRA: identities, closed forms, and what each sees that accuracy does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.unlearn import klom, margins, ulira
from assay.unlearn.ulira import chance


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


def test_margins_are_log_odds() -> None:
    logits, y = draw("logits", 5, 7, 4), torch.arange(7) % 4
    p = logits.softmax(-1).gather(-1, y[:, None].expand(5, 7, 1))[..., 0]
    assert torch.allclose(margins(logits, y), (p / (1 - p)).log())
    assert torch.isfinite(margins(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))).all()


def test_klom_is_scipys_divergence_on_numpys_bins() -> None:
    a, b = draw("a", 40, 30), draw("b", 60, 30) * 1.5
    found = klom(a, b, bins=6)
    for j in range(30):
        both = torch.cat([a[:, j], b[:, j]]).numpy()
        edges = np.linspace(both.min(), both.max(), 7)
        p, q = (np.histogram(m[:, j].numpy(), edges)[0] / len(m) for m in (a, b))
        if (q > 0)[p > 0].all():
            assert float(found[j]) == pytest.approx(stats.entropy(p, q), abs=1e-12)
        else:
            filled = np.where(p > 0, np.maximum(q, 1e-5), 1)
            assert float(found[j]) == pytest.approx(
                np.sum(np.where(p > 0, p, 1) * np.log(np.where(p > 0, p, 1) / filled))
            )
    assert (q > 0).any()


def test_klom_of_a_set_with_itself_is_zero_and_far_apart_is_the_logarithm_of_eps() -> None:
    a = draw("a", 12, 50)
    assert klom(a, a).abs().max() == 0
    assert klom(a, a[torch.randperm(12, generator=torch_rng(0, "order"))]).abs().max() == 0
    assert torch.allclose(klom(a, a + 1000, bins=2), torch.full((50,), -np.log(1e-5), dtype=torch.float64))
    constant = torch.ones(12, 3)
    assert klom(constant, constant).abs().max() == 0
    # Beyond the clip both are the same.
    assert klom(constant * 200, constant * 300).abs().max() == 0
    shifted = klom(a + 5, a - 3, bins=10)
    assert torch.allclose(shifted, klom((a + 5) * 2, (a - 3) * 2, bins=10))  # bins follow the range


def test_the_official_bins_drop_the_largest_margin() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.4]])
    assert float(klom(a, b, bins=2)) == pytest.approx(0.5 * np.log(0.5 / 1) + 0.5 * np.log(0.5 / 1e-5))
    assert float(klom(a, b, bins=2, compat=True)) == pytest.approx(0.5 * np.log(0.5 / 1))


def test_klom_of_two_retrained_ensembles_is_its_floor() -> None:
    first, second, moved = draw("1", 20, 300), draw("2", 20, 300), draw("3", 20, 300) + 1.5
    floor, far = (float(klom(m, first, bins=4).mean()) for m in (second, moved))
    assert far > 2 * floor
    # The same mean with another spread is another distribution, which a mean margin does not show.
    narrow = first.mean(0) + 0.05 * (draw("4", 20, 300))
    assert float(klom(first, narrow, bins=4).mean()) > 2 * floor


def test_ulira_leaves_each_pair_out() -> None:
    u, r = draw("u", 5, 8) + 0.5, draw("r", 5, 8)
    found = ulira(u, r)
    for i in range(5):
        keep = torch.arange(5) != i
        (mean_u, var_u), (mean_r, var_r) = ((m[keep].mean(0), m[keep].var(0).mean()) for m in (u, r))
        for z, score in ((u[i], found.unlearned_[i]), (r[i], found.retrained_[i])):
            densities = [stats.norm(m, v.sqrt()).logpdf(z) for m, v in ((mean_u, var_u), (mean_r, var_r))]
            assert torch.allclose(score, torch.from_numpy(densities[0] - densities[1]))
    turned = ulira(r, u)
    assert torch.allclose(turned.unlearned_, -found.retrained_)
    assert turned.mean() == pytest.approx(found.mean())
    assert found.by_sample.mean() == pytest.approx(found.mean())


def test_ulira_is_right_half_of_the_time_without_a_trace() -> None:
    shared = [draw(f"s{k}", 10, 1) for k in range(400)]  # all samples of a model shift together
    shares = [ulira(s[:5] + 0.3 * draw("n", 5, 6), s[5:] + 0.3 * draw("m", 5, 6)).mean() for s in shared]
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * np.std(shares) / 20)
    same = ulira(draw("u", 5, 6), draw("u", 5, 6))
    assert same.mean() == 0.5  # ties


def test_chance_holds_what_has_no_trace_and_not_what_has() -> None:
    above = 0
    for k in range(40):
        u, r = draw(f"u{k}", 4, 3), draw(f"r{k}", 4, 3)
        above += ulira(u, r).mean() > np.quantile(chance(u, r, draws=60, seed=k), 0.95)
    assert above <= 6  # 2 expected
    u, r = draw("u", 5, 3) + 8, draw("r", 5, 3)
    assert ulira(u, r).mean() == 1
    assert ulira(u, r).tpr(0.0) == 1
    assert np.quantile(chance(u, r), 0.95) < 1


def test_one_sample_that_always_tells_is_seen() -> None:
    u, r = draw("u", 8, 40), draw("r", 8, 40)
    u[:, 0] += 20
    by_sample = ulira(u, r).by_sample
    assert by_sample[0] == 1
    assert by_sample[1:].mean() < 0.65


def test_bad_margins() -> None:
    a = draw("a", 5, 3)
    for call in (
        lambda: klom(a[:1], a),
        lambda: klom(a, a[:, :2]),
        lambda: klom(a, a, bins=0),
        lambda: klom(a * torch.nan, a),
        lambda: ulira(a[:2], a[:2]),
        lambda: ulira(a, a[:4]),
        lambda: ulira(a, a * torch.inf),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
