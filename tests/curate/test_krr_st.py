"""KRR-ST: the inner solution, the pool, and what distilling leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from assay.curate import KRRST, ModelPool, TargetSet, krr_predict
from assay.data import Data, load_data
from assay.papers.ssl_dataset_distillation import _Conv, bias_check, exact_checks
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

METHOD = KRRST(n_images=8, pool_size=2, online_iters=6, online_lr=0.05, outer_lr=3e-3, outer_iters=12, batch=32)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(80)


@pytest.fixture(scope="module")
def nets() -> tuple[_Conv, _Conv]:
    with seeded(0, "nets"):
        return _Conv(8, (3, 4)).eval(), _Conv(8, (3, 4)).eval()


def test_the_papers_exact_checks() -> None:
    found = exact_checks(4)
    assert found["ridge"] < 1e-9
    assert found["gradient"] < 1e-5
    assert found["interpolation"] < 1e-6
    assert found["counter"] == 0


def test_sampled_inner_losses_bias_the_outer_gradient() -> None:
    found = bias_check(0, None)
    assert found["derivative"] < 1e-8
    assert found["bias"] > 10
    assert found["closed"] < 5
    assert bias_check(0, "detached-denominator")["derivative"] > 0.1


def test_the_penalty_follows_the_trace_without_gradient() -> None:
    k = torch.eye(3, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 2, generator=torch_rng(0, "y"), dtype=torch.float64)
    assert torch.allclose(krr_predict(k, torch.eye(3, dtype=torch.float64), y, 0.5), y / 2.5)
    assert torch.allclose(krr_predict(7 * k, 7 * torch.eye(3, dtype=torch.float64), y, 0.5), y / 2.5)
    (slope,) = torch.autograd.grad(krr_predict(k, torch.eye(3, dtype=torch.float64), y, 0.5).sum(), k)
    expected = -torch.ones(3, 1, dtype=torch.float64) @ y.sum(1)[None] / 6.25
    assert torch.allclose(slope + slope.T, expected + expected.T)


def test_distilling_is_repeatable_and_leaves_everything_else(data: Data, nets: tuple[_Conv, _Conv]) -> None:
    extractor, target = nets
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in nets]
    x, state = data.x.clone(), torch.get_rng_state()
    found = METHOD.fit(extractor, target, data, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.x, x)
    for net, old in zip(nets, before, strict=True):
        assert all(torch.equal(v, old[k]) for k, v in net.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in net.parameters())
    again = METHOD.fit(extractor, target, data.with_y(data.y.flip(0)), seed=0)
    assert torch.equal(found.x_syn_, again.x_syn_)
    assert torch.equal(found.y_syn_, again.y_syn_)
    start = METHOD.initial(extractor, target, data, seed=0)
    assert not torch.equal(found.x_syn_, start.x_syn_)
    assert not torch.equal(found.y_syn_, start.y_syn_)
    assert len(found.history_) == 12


def test_the_outer_loss_falls(data: Data, nets: tuple[_Conv, _Conv]) -> None:
    found = replace(METHOD, outer_iters=80, outer_lr=1e-2, online_iters=60).fit(*nets, data, seed=1)
    assert found.history_[-15:].mean() < 0.9 * found.history_[:15].mean()


def test_clipping_holds_the_step(data: Data, nets: tuple[_Conv, _Conv]) -> None:
    start = METHOD.initial(*nets, data, seed=0)
    held = replace(METHOD, clip=1e-12, outer_iters=1).fit(*nets, data, seed=0)
    free = replace(METHOD, outer_iters=1).fit(*nets, data, seed=0)
    moved = [float((f.x_syn_ - start.x_syn_).abs().max()) for f in (held, free)]
    assert moved[0] < 0.1 * moved[1]


def test_a_pool_member_is_trained_by_its_own_optimiser() -> None:
    with seeded(0, "pool"):
        net = nn.Linear(2, 1)
    found = TargetSet(torch.rand(4, 2, generator=torch_rng(0, "x")), torch.ones(4, 1), torch.zeros(0))
    pool = ModelPool.trained(net, found, size=3, online_iters=5, lr=0.1, seed=0)
    assert all(1 <= s <= 4 for s in pool.steps)
    for k, (model, optimizer) in enumerate(zip(pool.models, pool.optimizers, strict=True)):
        p = next(iter(model.parameters()))
        assert optimizer.param_groups[0]["params"][0] is p
        before, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
        (slope,) = torch.autograd.grad((model(found.x_syn_) - 1).square().mean(), p)
        pool.update(k, found.x_syn_, found.y_syn_)
        assert torch.allclose(p, before - 0.1 * (0.9 * buffer + slope + 1e-3 * before))
        assert not model.training


def test_pretraining_reaches_targets_that_a_network_can_make(nets: tuple[_Conv, _Conv], data: Data) -> None:
    with torch.no_grad():
        found = TargetSet(data.x[:10], nets[1](data.x[:10]), torch.zeros(0))
    model = found.pretrain(nets[0], seed=0, epochs=60, lr=0.05)
    error = (model(found.x_syn_) - found.y_syn_).square().mean()
    assert error < 0.5 * found.y_syn_.var()


def test_bad_input(data: Data, nets: tuple[_Conv, _Conv]) -> None:
    extractor, target = nets
    k, norm = torch.eye(3), nn.BatchNorm1d(3)
    lone = ModelPool([norm], [torch.optim.SGD(norm.parameters())], [0], 5, 0.1, 0.0, 0)
    for call in (
        lambda: krr_predict(torch.zeros(3, 3), k, k, 0.0),
        lambda: krr_predict(k, k[:, :2], k, 0.1),
        lambda: krr_predict(k, k, k, -1.0),
        lambda: replace(METHOD, n_images=81).fit(extractor, target, data, seed=0),
        lambda: METHOD.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 32)), target, data, seed=0),
        lambda: METHOD.fit(extractor, nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), data, seed=0),
        lambda: lone.update(0, torch.zeros(1, 3), torch.zeros(1, 3)),
        lambda: replace(METHOD, online_iters=1),
        lambda: replace(METHOD, outer_lr=0.0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
