"""The audit properties of compression and cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.audit import compression, cost
from assay.audit.property import Context, Section
from assay.compress import MagnitudePruning, Quantisation
from assay.nets import ResNet
from assay.runtime.inference import predict
from assay.subject import Access, Subject, load


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load("digits")


@pytest.fixture(scope="module")
def section(subject: Subject) -> Section:
    return compression.measure(subject, Context())


def test_metrics_are_the_accuracies_of_the_compressed_models(subject: Subject, section: Section) -> None:
    values = {m.name: m.value for m in section.metrics}
    for name, method in {
        "compression.sparsity.accuracy@0.9": MagnitudePruning(sparsity=0.9),
        "compression.bits.accuracy@2": Quantisation(bits=2),
    }.items():
        right = predict(method.repair(subject, seed=0), subject.test.x).argmax(1) == subject.test.y
        assert values[name] == pytest.approx(float(right.float().mean()))
        assert section.samples[name].values[:, 0].tolist() == right.float().tolist()
        assert section.samples[name].index.tolist() == subject.test.index.tolist()
    assert set(section.headline) <= set(values)
    assert len(values) == 9
    assert all(m.interval == "Wilson 95%" for m in section.metrics)
    assert all(0 <= severity <= 1 for severity, _ in section.findings)


def test_the_subject_is_unchanged_and_the_profile_adds_metrics(subject: Subject, section: Section) -> None:
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    standard = compression.measure(subject, Context(profile="standard"))
    assert all(torch.equal(before[k], v) for k, v in subject.model.state_dict().items())
    assert {m.name for m in section.metrics} < {m.name for m in standard.metrics}


def test_a_model_without_layers_is_skipped(subject: Subject) -> None:
    bare = subject.with_model(nn.Sequential(nn.Flatten(), nn.LayerNorm(64)))
    assert compression.measure(bare, Context()).skipped


def test_peak_memory_in_closed_form() -> None:
    x = torch.zeros(10, 8)
    # Input and output of the ReLU are alive together; a ReLU in place needs one of them, beside the last layer's.
    apart = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    inside = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 4))
    assert cost.peak_bytes(apart, x) == 2 * 10 * 32 * 4
    assert cost.peak_bytes(inside, x) == 10 * (32 + 4) * 4
    assert cost.peak_bytes(nn.Flatten(), x) == 0
    # The first block's sum is held beside its input, its second branch and its ReLU: four maps of the widest stage.
    assert cost.peak_bytes(ResNet(), torch.zeros(4, 3, 32, 32)) == 4 * (4 * 16 * 32 * 32 * 4)


def test_cost_metrics(subject: Subject) -> None:
    section = cost.measure(subject, Context())
    metrics = {m.name: m for m in section.metrics}
    assert metrics["cost.parameters"].value == sum(p.numel() for p in subject.model.parameters()) == 38282
    assert metrics["cost.bytes"].value == 4 * 38282
    # conv 16x(1x9) and 32x(16x9) over maps of 8x8 and 4x4, linear 512x64 and 64x10, two operations each
    assert metrics["cost.flops"].value == 2 * (64 * 16 * 9 + 16 * 32 * 16 * 9 + 512 * 64 + 64 * 10)
    for name in ("cost.latency.batch1", "cost.throughput"):
        m = metrics[name]
        assert 0 < m.low <= m.value <= m.high
    assert metrics["cost.memory.peak"].value == 2 * 64 * 16 * 64 * 4
    assert not section.samples


def test_names_do_not_depend_on_the_model_and_sizes_need_the_weights(subject: Subject) -> None:
    pruned = subject.with_model(MagnitudePruning().repair(subject, seed=0))
    plain, small = cost.measure(subject, Context()), cost.measure(pruned, Context())
    assert [m.name for m in plain.metrics] == [m.name for m in small.metrics]
    assert small.metrics[2].value < 0.2 * plain.metrics[2].value
    scores = cost.measure(subject.with_model(subject.model, access=Access.SCORE), Context())
    assert [m.name for m in scores.metrics] == ["cost.latency.batch1", "cost.throughput"]
