"""Detections matched to signs, thresholds and rates on toy lists, the small detector, and the benchmark."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve
from torch import Tensor, nn

from assay.attacks import DPatch, RP2Patch, box_iou
from assay.attacks.patch import total_variation
from assay.runtime.errors import InputError
from assay.training import Plan
from assay.vision import (
    GridDetector,
    Matches,
    PatchBenchmark,
    PatchRenderer,
    Scenes,
    attack_success_rate,
    average_precision,
    corners,
    f1_threshold,
    fit_detector,
    fnr_threshold,
    match,
)

SIZE = 8  # of the canonical sign
INF = math.inf


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def matches(scores: list[float], hits: list[int], signs: list[float]) -> Matches:
    return Matches(torch.tensor(scores), torch.tensor(hits, dtype=torch.bool), torch.tensor(signs))


def test_predictions_take_the_sign_they_overlap_most_once() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [50, 50, 60, 60]])
    predicted = found(
        [[0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10], [50, 50, 60, 60], [50, 50, 60, 60]],
        [0.5, 0.9, 0.8, 0.7, 0.6],
        [0, 0, 0, 1, 0],
    )
    result = match([predicted], boxes, torch.tensor([0, 0, 0]), 0)
    # .9 takes the first sign, .8 the second; .6 the third, whose other prediction is of another class; .5 is too late.
    assert result.scores.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.5])
    assert result.hits.tolist() == [True, True, True, False]
    assert result.sign_scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    strict = match([predicted], boxes, torch.tensor([0, 0, 0]), 0, iou=0.95)
    assert strict.sign_scores.tolist() == pytest.approx([0.5, -INF, 0.6])
    elsewhere = match([predicted, found([], [], [])], boxes, torch.tensor([1, 1, 1]), 0)
    assert not elsewhere.hits.any()
    small = match([predicted], boxes, torch.tensor([0, 0, 0]), 0, counts=torch.tensor([True, False, True]))
    assert small.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert small.sign_scores.tolist() == pytest.approx([0.9, 0.6])


def test_thresholds() -> None:
    some = matches([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1], [0.9, 0.7, 0.6, -INF])
    scores = {0.9: 2 / 5, 0.8: 2 / 6, 0.7: 4 / 7, 0.6: 6 / 8}
    assert f1_threshold(some) == pytest.approx(max(scores, key=scores.get))  # type: ignore[arg-type]
    assert f1_threshold(matches([0.9, 0.1], [0, 0], [-INF])) == INF
    tied = matches([0.5, 0.5, 0.5], [1, 0, 0], [0.5])
    assert f1_threshold(tied) == 0.5
    assert fnr_threshold(some, 0.25) == pytest.approx(0.6)
    assert fnr_threshold(some, 0.5) == pytest.approx(0.7)
    for bad in (0.1, 1.0, -0.1, math.nan):
        with pytest.raises(InputError, match="fnr"):
            fnr_threshold(some, bad)


def test_average_precision() -> None:
    assert average_precision(matches([0.9, 0.8], [1, 1], [0.9, 0.8])) == pytest.approx(1)
    assert average_precision(matches([], [], [-INF])) == 0
    assert math.isnan(average_precision(matches([0.5], [0], [])))
    # Recall 1/2 at precision 1, then 2/3 of it at recall 1: 51 of 101 recalls at 1, 50 at 2/3.
    half = matches([0.9, 0.8, 0.7], [1, 0, 1], [0.9, 0.7])
    assert average_precision(half) == pytest.approx((51 + 50 * 2 / 3) / 101)
    rng = np.random.default_rng(0)
    scores, hits = rng.permutation(200) / 200, rng.random(200) < 0.6
    precision, recall, _ = precision_recall_curve(hits, scores)
    best = np.array([precision[recall >= r - 1e-12].max() for r in np.linspace(0, 1, 101)])
    taken = matches(scores.tolist(), hits.tolist(), scores[hits].tolist())
    assert average_precision(taken) == pytest.approx(best.mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_of_tied_scores_by_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, hits = rng.integers(0, 4, 9) / 4, rng.random(9) < 0.5
    signs = int(hits.sum()) + 2
    points = [(hits[scores >= t].sum() / signs, hits[scores >= t].mean()) for t in set(scores)]
    expected = np.mean([max([p for r, p in points if r >= k / 100 - 1e-12], default=0) for k in range(101)])
    for order in (np.arange(9), rng.permutation(9)):
        tied = matches(scores[order].tolist(), hits[order].tolist(), [0.5] * signs)
        assert average_precision(tied) == pytest.approx(expected)


def test_success_counts_only_signs_that_were_detected() -> None:
    clean, patched = (torch.tensor(v, dtype=torch.bool) for v in ([1, 1, 1, 0, 0], [1, 0, 0, 0, 1]))
    assert attack_success_rate(clean, patched) == pytest.approx(2 / 3)
    assert math.isnan(attack_success_rate(clean & False, patched))
    with pytest.raises(InputError, match="same signs"):
        attack_success_rate(clean, patched[1:])


class Bright(nn.Module):
    """Finds squares of a grid by their mean brightness above .5, as class 0; has all that a patch attack asks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))

    def means(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.mean(1, keepdim=True), SIZE)[:, 0]

    def proposals(self, images: Tensor) -> list[dict[str, Tensor]]:
        means = self.means(images)
        rows, columns = torch.meshgrid(*(torch.arange(k) * float(SIZE) for k in means.shape[1:]), indexing="ij")
        boxes = torch.stack((columns, rows, columns + SIZE - 1, rows + SIZE - 1), -1).flatten(0, 1)
        margin = self.weight * (means - 0.5).flatten(1)
        return [{"boxes": boxes, "logits": torch.stack((m, -m), 1), "objectness": m} for m in margin]

    def predict(self, images: Tensor) -> list[dict[str, Tensor]]:
        results = []
        for p in self.proposals(images):
            score = p["logits"].softmax(1)[:, 0]
            kept = score > 0.5
            labels = torch.zeros(int(kept.sum()), dtype=torch.int64)
            results.append({"boxes": p["boxes"][kept], "scores": score[kept], "labels": labels})
        return results

    def losses(self, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            "bright": torch.stack([(1 - p["logits"].softmax(1)[:, 0]).amin() for p in self.proposals(images)]).sum()
        }


def scenes(n: int = 6, second: bool = False, dim: float = 0.0) -> Scenes:
    """Dark images with a bright sign on one cell of the grid, each by ``dim`` darker than the one before; with
    ``second`` a dark one of class 1 as well."""
    images, place = torch.full((n, 3, 40, 40), 0.1), torch.arange(n) % 4
    points = []
    for k, p in enumerate(place.tolist()):
        images[k, :, 8 : 8 + SIZE, SIZE * p : SIZE * (p + 1)] = 0.9 - dim * k
        points.append(corners((SIZE, SIZE)) + torch.tensor([SIZE * p, 8.0]))
    ones = torch.ones(1, SIZE, SIZE)
    light = torch.tensor([[[1.0, 0.0]]]).expand(n, 1, 2)
    found = Scenes(images, torch.stack(points), light, torch.arange(n), torch.zeros(n, dtype=torch.int64), ones, ones)
    if not second:
        return found
    more = torch.stack(points) + torch.tensor([0.0, 2 * SIZE])
    return Scenes(
        images, torch.cat((found.keypoints, more)), light.repeat(2, 1, 1), torch.arange(n).repeat(2),
        torch.arange(2).repeat_interleave(n), ones, ones,
    )  # fmt: skip


def test_benchmark_on_a_detector_whose_answers_are_known() -> None:
    fitted = PatchBenchmark(min_area=0).fit(Bright(), scenes())
    clean = fitted.run()
    assert (clean.fnr, clean.asr, clean.ap) == pytest.approx((0, 0, 1))
    dark, bright = torch.zeros(3, SIZE, SIZE), torch.full((3, SIZE, SIZE), 0.95)
    lost = fitted.run(dark)
    assert (lost.fnr, lost.asr, lost.ap) == pytest.approx((1, 1, 0))
    assert fitted.run(bright).asr == 0
    unlit = replace(scenes(), relight=torch.tensor([[[0.05, 0.9]]]).expand(6, 1, 2))
    assert PatchBenchmark(min_area=0).fit(Bright(), unlit).run(dark).asr == 0
    assert fitted.run(dark).per_class[0].detected == 6
    with pytest.raises(InputError, match="no sign"):
        PatchBenchmark().fit(Bright(), scenes())
    small = PatchBenchmark(min_area=0, batch_size=2).fit(Bright(), scenes())
    assert small.thresholds_ == pytest.approx(fitted.thresholds_)
    assert small.run(dark) == lost
    strict = PatchBenchmark(min_area=0, clean_fnr=0.0).fit(Bright(), scenes())
    assert strict.thresholds_[0] <= fitted.thresholds_[0] + 1e-6


def test_means_over_classes_and_over_signs() -> None:
    report = PatchBenchmark(min_area=0).fit(Bright(), scenes(second=True)).run(torch.full((3, SIZE, SIZE), 0.95))
    assert report.per_class[1].fnr == 1  # never detected: no success rate
    assert math.isnan(report.per_class[1].asr)
    assert (report.fnr, report.asr, report.weighted_fnr) == pytest.approx((0.5, 0, 0.5))


@pytest.mark.parametrize("attack", [RP2Patch(steps=40, lr=0.1), DPatch(steps=40, lr=0.1, n_eot=3)])
@pytest.mark.parametrize("optimizer", ["adam", "pgd"])
def test_patches_hide_signs_that_random_ones_do_not(attack, optimizer) -> None:
    attack, detector, given = replace(attack, optimizer=optimizer), Bright().train(), scenes()
    before, random = copy.deepcopy(detector.state_dict()), torch.get_rng_state()
    images = given.images.clone()
    patch = attack(detector, given, seed=0)
    assert patch.shape == (3, SIZE, SIZE)
    assert patch.min() >= 0
    assert patch.max() <= 1
    assert not patch.requires_grad
    assert patch.equal(attack(detector, given, seed=0))
    assert not patch.equal(attack(detector, given, seed=1))
    assert torch.get_rng_state().equal(random)
    assert given.images.equal(images)
    assert detector.training
    assert detector.weight.requires_grad
    assert detector.weight.grad is None
    assert all(v.equal(before[k]) for k, v in detector.state_dict().items())
    judged = PatchBenchmark(min_area=0).fit(detector, scenes(9, dim=0.04))
    noise = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.6
    assert judged.run(patch).asr == 1
    assert judged.run(noise).asr == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("optimizer", ["adam", "pgd"])
def test_patches_do_not_depend_on_the_mode_of_the_caller(mode, optimizer) -> None:
    attack, given = RP2Patch(steps=3, lr=0.1, optimizer=optimizer), scenes()
    detector = Bright()
    with mode():
        inside = attack(detector, given, seed=0)
        within = attack(detector, scenes(), seed=0)
    assert inside.equal(attack(detector, given, seed=0))
    assert within.equal(inside)


def test_the_mask_bounds_the_patch() -> None:
    half = torch.zeros(1, SIZE, SIZE)
    half[:, :4] = 1
    patch = RP2Patch(steps=3)(Bright(), replace(scenes(), mask=half), seed=0)
    assert (patch[:, 4:] == 0).all()
    assert (patch[:, :4] > 0).any()


def test_small_detector_answers_in_the_form_of_the_protocol() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GridDetector(3, 4, score=0.0).eval()
    images = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    proposals = model.proposals(images)
    assert [p["boxes"].shape for p in proposals] == [(30, 4)] * 2
    assert proposals[0]["logits"].shape == (30, 3)
    predicted = model.predict(images)
    for p in predicted:
        assert (p["scores"].diff() <= 0).all()
        assert len(p["boxes"]) == len(p["labels"]) == len(p["scores"]) > 0
        for label in p["labels"].unique():
            own = p["boxes"][p["labels"] == label]
            overlap = box_iou(own, own).fill_diagonal_(0)
            assert overlap.max() <= 0.5
    assert model.spec.options == {"classes": 3, "width": 4, "score": 0.0}
    target = {"boxes": torch.tensor([[8.0, 8, 24, 24]]), "labels": torch.tensor([1])}
    losses = model.losses(images, [target, target])
    assert set(losses) == {"objectness", "box", "class"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_small_detector_learns() -> None:
    given = scenes(16)
    targets = given.targets()
    targets[0] = {name: torch.cat((t, t)) for name, t in targets[0].items()}  # two signs in one image
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = GridDetector(1, 8)
    before = copy.deepcopy(start.state_dict())
    trained = fit_detector(start, given.images, targets, Plan(steps=80, batch_size=8, lr=1e-2), seed=0)
    assert PatchBenchmark(min_area=0).fit(trained, given).run().ap > 0.9
    assert all(v.equal(before[k]) for k, v in start.state_dict().items())


def test_rp2_counts_only_proposals_that_match() -> None:
    model, given = Bright(), scenes(2)
    targets = given.targets()
    whole = RP2Patch(min_conf=0.0).objective(model, given.images, targets)
    margin = 10 * (0.9 - 0.5)
    assert whole.item() == pytest.approx(-math.log1p(math.exp(-2 * margin)), rel=1e-4)
    none = RP2Patch(min_conf=0.9999).objective(model, given.images, targets)
    assert none.item() == 0
    with_objects = RP2Patch(obj_const=2.0).objective(model, given.images, targets)
    extra = 2 * math.log1p(math.exp(-margin))
    assert with_objects.item() == pytest.approx(whole.item() - extra, rel=1e-4)
    away = [{"boxes": t["boxes"] + 300, "labels": t["labels"]} for t in targets]
    assert RP2Patch().objective(model, given.images, away).item() == 0
    losses = model.losses(given.images, targets)["bright"]
    assert DPatch().objective(model, given.images, targets).item() == pytest.approx(-losses.item())


def test_bad_input() -> None:
    empty = replace(scenes(), images=torch.zeros(0, 3, 40, 40))
    cases = [
        *(lambda o=o: RP2Patch(**o) for o in ({"steps": 0}, {"lr": 0.0}, {"n_eot": 0}, {"tv": -1.0}, {"iou": 0.0})),
        *(lambda o=o: RP2Patch(**o) for o in ({"min_conf": 1.0}, {"obj_const": -1.0}, {"optimizer": "sgd"})),
        lambda: DPatch(optimizer="sgd"),  # type: ignore[arg-type]
        lambda: RP2Patch(steps=1)(Bright(), empty, seed=0),
        lambda: RP2Patch(steps=1)(Bright(), replace(scenes(), images=scenes().images + 1), seed=0),
        lambda: PatchBenchmark(iou=0.0),
        lambda: fit_detector(GridDetector(1, 4), scenes().images, [], Plan(steps=1), seed=0),
        lambda: PatchBenchmark(batch_size=0),
        lambda: PatchBenchmark(clean_fnr=1.0),
        lambda: RP2Patch(steps=1)(Bright(), with_empty_images().select(torch.tensor([0])), seed=0),
        lambda: PatchBenchmark(min_area=0).fit(Bright(), scenes()).run(torch.zeros(3, 4, 4)),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
    assert PatchRenderer().relight == "percentile"


def with_empty_images() -> Scenes:
    """Three images of 40 x 40, of which only the second has a sign."""
    ones, light = torch.ones(1, SIZE, SIZE), torch.tensor([[[1.0, 0.0]]])
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    return Scenes(images, corners((SIZE, SIZE))[None] + 8, light, torch.tensor([1]), torch.tensor([0]), ones, ones)


def test_images_without_a_sign_are_legal() -> None:
    given, patch = with_empty_images(), torch.ones(3, SIZE, SIZE)
    rendered = given.render(patch)
    assert rendered[[0, 2]].equal(given.images[[0, 2]])
    assert given.select(torch.tensor([0, 2])).render(patch).equal(given.images[[0, 2]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = GridDetector(1, 4, score=0.0)
    reports = [PatchBenchmark(min_area=0, batch_size=b).fit(start, given).run(patch) for b in (1, 3)]
    assert reports[0].fnr == reports[1].fnr
    for attack in (RP2Patch, DPatch):
        assert torch.isfinite(attack(steps=3)(start, given, seed=0)).all()
    losses = start.losses(given.images[:1], given.select(torch.tensor([0])).targets())
    assert torch.isfinite(losses["objectness"])
    assert losses["box"] == losses["class"] == 0
    trained = fit_detector(start, given.images, given.targets(), Plan(steps=3, batch_size=1), seed=0)
    assert all(torch.isfinite(p).all() for p in trained.parameters())


def test_overlap_of_half_precision_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 300, 150], [7, 7, 7, 7]])
    assert box_iou(boxes.half(), boxes.half()).equal(box_iou(boxes, boxes))
    assert box_iou(boxes, boxes)[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(3, 1, 4), (3, 4, 1), (3, 1, 1)])
def test_total_variation_of_one_row_or_column(shape: tuple[int, ...]) -> None:
    patch = torch.arange(float(math.prod(shape))).reshape(shape)
    assert total_variation(patch) == float(max(shape[1:]) > 1)
