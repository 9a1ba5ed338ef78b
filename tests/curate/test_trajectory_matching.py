"""Trajectory matching: identities of the loss, the student, the experts and the images that it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.curate import (
    AST,
    ExpertTrajectories,
    SiameseAugmentation,
    Trajectories,
    TrajectoryMatching,
    evaluate_distilled,
    representative,
)
from assay.data import Data, load_data
from assay.nets import MLP, SmallCNN
from assay.papers.smooth_expert_distillation import _small, exact_checks
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng

RULE = AST(max_start=3, syn_steps=4, iterations=3, lr_img=0.5, lr_lr=1e-4)
EXPERTS = ExpertTrajectories(n=2, epochs=4, batch_size=64, lr=0.02, gp_weight=0.1, clip_schedule=(0.5, 0.9, 3))


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(200)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with seeded(0, "net"):
        return MLP((1, 8, 8), 10, (8,))


@pytest.fixture(scope="module")
def experts(data: Data, net: nn.Module) -> Trajectories:
    return EXPERTS.fit(net, data, seed=0)


def test_the_papers_exact_checks() -> None:
    found = exact_checks(3)
    assert found["gradient"] < 1e-5
    assert max(found[k] for k in ("still", "sgd", "balance")) < 1e-12
    assert found["unmoved"] == 0


def test_trajectories_begin_before_training_and_keep_every_epoch(
    data: Data, net: nn.Module, experts: Trajectories, tmp_path: Path
) -> None:
    assert experts.params_.shape == (2, 5, sum(p.numel() for p in net.parameters()))
    assert experts.smoothness().shape == (4,)
    assert (experts.smoothness() > 0).all()
    again = EXPERTS.fit(net, data, seed=0)
    assert torch.equal(again.params_, experts.params_)
    assert not torch.equal(experts.params_[0], experts.params_[1])
    losses = [F.cross_entropy(experts.logits(t, data.x), data.y) for t in experts.params_[0, [0, -1]]]
    assert losses[1] < 0.97 * losses[0]
    experts.save(tmp_path / "experts.safetensors")
    assert torch.equal(Trajectories.load(tmp_path / "experts.safetensors", net).params_, experts.params_)


def test_clipping_is_the_papers_schedule_and_slows_the_start(data: Data, net: nn.Module) -> None:
    factors = [ExpertTrajectories().factor(e) for e in range(12)]
    assert factors == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1, 1])
    plain = replace(EXPERTS, n=1, epochs=1, gp_weight=0.0, clip_schedule=None)
    moved = [r.fit(net, data, seed=1).smoothness()[0] for r in (plain, replace(plain, clip_schedule=(0.5, 0.9, 3)))]
    assert moved[1] < 0.9 * moved[0]


def test_the_penalty_of_a_linear_network_is_closed_form() -> None:
    with seeded(0, "linear"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(5, 3, 2, 2, generator=torch_rng(0, "x"))
    slope = model[1].weight.sum(0).view(3, 2, 2)
    image, channel = (ExpertTrajectories(gp_norm=n).penalty(model, x) for n in ("image", "channel"))  # type: ignore[arg-type]
    assert torch.allclose(image, (slope.norm() - 1).square())
    assert torch.allclose(channel, (slope.norm(dim=0) - 1).square().mean())


def test_intermediate_distances_are_taken_where_the_epochs_end() -> None:
    trajectories, x, y = _small(1)
    rule = AST(max_start=1, expert_epochs=3, syn_steps=7, intermediate="adaptive", perturb=0.0)
    assert rule.weights() == pytest.approx([1 / 3, 2 / 3, 1])
    assert replace(rule, intermediate="agg").weights() == [1, 1, 1]
    assert TrajectoryMatching(expert_epochs=3).weights() == [0, 0, 1]
    lr = torch.tensor(0.1, dtype=torch.float64)
    start, goals, t = rule.drawn(trajectories, seed=5)
    longer = rule.students(trajectories, start, x, y, lr, t, seed=5)
    shorter = replace(rule, syn_steps=2, expert_epochs=1).students(trajectories, start, x, y, lr, t, seed=5)
    assert torch.allclose(longer[0], shorter[-1])
    expected = sum(
        w * (s - g).square().sum() / (start - g).square().sum()
        for w, s, g in zip(rule.weights(), longer, goals, strict=True)
    )
    assert torch.allclose(rule.objective(trajectories, x, y, lr, seed=5), torch.as_tensor(expected))


def test_a_truncated_graph_keeps_the_value_and_loses_gradient() -> None:
    trajectories, x, y = _small(2)
    lr = torch.tensor(0.1, dtype=torch.float64)
    found = []
    for keep in (None, 4, 1):
        leaf = x.clone().requires_grad_(True)
        loss = AST(max_start=2, syn_steps=4, keep_graph=keep).objective(trajectories, leaf, y, lr, seed=1)
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert torch.equal(found[0][0], found[2][0])
    assert torch.allclose(found[0][1], found[1][1])
    assert not torch.allclose(found[0][1], found[2][1])


def test_only_convolutions_are_perturbed_in_proportion() -> None:
    with seeded(0, "cnn"):
        model = SmallCNN((1, 8, 8), 10, (4, 4), 8)
    size = sum(p.numel() for p in model.parameters())
    trajectories = Trajectories(torch.ones(1, 2, size), model)
    moved = trajectories.unflat(AST(perturb=2.0).perturbed(trajectories, torch.ones(size), seed=0))
    for w in moved.values():
        assert (w == 1).all() if w.dim() != 4 else float((w - 1).norm()) == pytest.approx(2.0, rel=1e-5)


def test_batches_go_through_all_images_before_any_comes_again() -> None:
    rule = TrajectoryMatching(syn_steps=7, batch_syn=4)
    parts = rule._batches(10, 0)
    assert [len(p) for p in parts] == [4, 4, 2, 4, 4, 2, 4]
    assert torch.equal(torch.cat(parts[:3]).sort().values, torch.arange(10))


def test_distilling_lowers_the_loss_and_leaves_everything_else(data: Data, experts: Trajectories) -> None:
    before, weights = data.x.clone(), experts.params_.clone()
    state = torch.get_rng_state()
    rule = replace(RULE, ipc=2, iterations=60, lr_start=0.05, max_start=1, perturb=0.0)
    found = rule.fit(experts, data, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.x, before)
    assert torch.equal(experts.params_, weights)
    assert torch.equal(found.y_syn_, torch.arange(10).repeat_interleave(2))
    assert found.x_syn_.shape == (20, 1, 8, 8)
    assert found.history_[-10:].mean() < 0.95 * found.history_[:10].mean()
    again = rule.fit(experts, data, seed=0)
    assert torch.equal(found.x_syn_, again.x_syn_)
    assert found.lr_ == again.lr_ > 0


def test_representative_images_are_real_distinct_and_of_their_class(data: Data, experts: Trajectories) -> None:
    rows = representative(experts, data, 3, seed=0)
    assert len(rows.unique()) == 30
    assert torch.equal(data.y[rows], torch.arange(10).repeat_interleave(3))


def test_evaluation_trains_new_networks(data: Data, net: nn.Module) -> None:
    mean, std = evaluate_distilled(data.x, data.y, 0.1, net, data, repeats=2, steps=60)
    assert 0.6 < mean <= 1
    assert std >= 0
    assert (mean, std) == evaluate_distilled(data.x, data.y, 0.1, net, data, repeats=2, steps=60)


def image(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch_rng(0, "images"))


@pytest.mark.parametrize("name", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_the_batch_shares_its_operation(name: str) -> None:
    x, draws = image(1).repeat(6, 1, 1, 1), Draws(1, "augment", torch.arange(6))
    shared = SiameseAugmentation(operations=(name,))(x, draws)
    assert torch.allclose(shared, shared[:1].expand_as(shared), atol=1e-6)
    own = SiameseAugmentation(operations=(name,), shared=False)(x, Draws(1, "augment", torch.arange(6)))
    assert not torch.allclose(own, own[:1].expand_as(own), atol=1e-3)
    leaf = x.clone().requires_grad_(True)
    out = SiameseAugmentation(operations=(name,))(leaf, Draws(1, "augment", torch.arange(6)))
    assert torch.autograd.grad(out.square().sum(), leaf)[0].abs().sum() > 0


def test_augmentations_of_no_strength_change_nothing() -> None:
    still = SiameseAugmentation(operations=("crop", "scale", "rotate"), shift=0.0, ratio=1.0, degrees=0.0)
    x = image()
    for seed in range(6):
        assert torch.allclose(still(x, Draws(seed, "augment", torch.arange(6))), x, atol=1e-5)
    half = SiameseAugmentation(operations=("cutout",))(torch.ones(1, 1, 8, 8), Draws(0, "a", torch.arange(1)))
    assert 0 < int((half == 0).sum()) <= 16


def test_bad_input(data: Data, net: nn.Module, experts: Trajectories, tmp_path: Path) -> None:
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    (tmp_path / "bad").write_bytes(b"no")
    for call in (
        lambda: replace(RULE, max_start=4).fit(experts, data, seed=0),
        lambda: replace(RULE, ipc=100).fit(experts, data, seed=0),
        lambda: replace(RULE, lr_start=1e6, iterations=20).fit(experts, data, seed=0),
        lambda: RULE.fit(experts, data.with_x(data.x[:, :, :4]).with_y(data.y.clamp(max=3)), seed=0),
        lambda: RULE.fit(experts, data.with_x(data.x[:, :, :4]), seed=0),
        lambda: RULE.fit(experts, replace(data, classes=(*data.classes, "more")), seed=0),
        lambda: EXPERTS.fit(norm, data, seed=0),
        lambda: Trajectories(experts.params_[:, :, 1:], net),
        lambda: Trajectories(experts.params_ * torch.nan, net),
        lambda: replace(EXPERTS, clip_schedule=(0.0, 1.0, 3)),
        lambda: replace(RULE, momentum=1.0),
        lambda: replace(RULE, expert_epochs=0),
        lambda: replace(RULE, lr_lr=0.0),
        lambda: evaluate_distilled(data.x, data.y, 0.0, net, data),
        lambda: SiameseAugmentation(operations=()),
        lambda: SiameseAugmentation(ratio=0.5),
        lambda: SiameseAugmentation()(data.x[0], Draws(0, "a", torch.arange(1))),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    with pytest.raises(InputError, match="cannot be read"):
        Trajectories.load(tmp_path / "bad", net)
    for make in (
        lambda: replace(RULE, init="mean"),
        lambda: replace(RULE, intermediate="all"),
        lambda: replace(EXPERTS, gp_norm="row"),
        lambda: SiameseAugmentation(operations=("noise",)),
    ):
        with pytest.raises(InputError, match="unknown"):
            make()
