"""A group and a slice on which the model fails are found, and measured on samples that did not help to find them."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from assay.audit import subgroups
from assay.audit.property import Context, Section
from assay.data import Data
from assay.runtime.random import torch_rng
from assay.subject import Subject


class Half(nn.Module):
    """Right where x_1 < 0.75 and wrong elsewhere, as the label is x_0 > 0.5."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Identity(), nn.Identity()

    def forward(self, x):
        z = self.body(x)
        s = torch.where(z[:, :1] > 0.5, 1.0, -1.0) * torch.where(z[:, 1:2] < 0.75, 1.0, -1.0)
        return self.head(torch.cat([-s, s], 1) * 3)


@pytest.fixture
def subject():
    x = torch.rand(1000, 2, generator=torch_rng(0, "x"))
    groups = (x[:, 1] >= 0.75).long() + 4
    data = Data(x, (x[:, 0] > 0.5).long(), ("no", "yes"), fields={"groups": groups})
    return Subject(Half(), data)


def test_named_groups_and_found_slices(subject):
    section = subgroups.measure(subject, Context())
    got = {m.name: m for m in section.metrics}
    share = float((subject.test.x[:, 1] >= 0.75).float().mean())
    assert got["subgroups.worst"].value == 0
    assert got["subgroups.gap"].value == pytest.approx(1 - share)
    assert got["subgroups.gap"].low < 1 - share < got["subgroups.gap"].high
    assert got["subgroups.slices.worst"].value < 0.1
    assert "subgroups.worst" in section.samples
    assert "subgroups.slices.worst" not in section.samples
    assert Section.from_arrays(section.to_arrays()).to_dict() == section.to_dict()


@pytest.mark.parametrize(
    ("groups", "said"),
    [(torch.zeros(1000, 2), r"the shape \(800, 2\)"), (torch.full((1000,), float("nan")), "NaN")],
)
def test_groups_of_no_use_are_left_out_and_said_so(subject, groups, said):
    given = replace(subject, test=replace(subject.test, fields={"groups": groups[: len(subject.test)]}))
    section = subgroups.measure(given, Context())
    assert section.metrics[0].name == "subgroups.slices.worst"
    assert re.search(said, section.notes[0])


def test_names_do_not_depend_on_groups_that_are_absent(subject):
    plain = replace(subject, test=replace(subject.test, fields={}))
    names = {m.name for m in subgroups.measure(plain, Context()).metrics}
    assert names == {"subgroups.slices.worst", "subgroups.slices.gap", "subgroups.slices.share"}


def test_slices_are_found_without_the_test_set(subject):
    tree, worst = subgroups.find_slices(subject, seed=0)
    other, same = subgroups.find_slices(replace(subject, test=subject.test[:10]), seed=0)
    assert worst == same
    assert (tree.tree_.threshold == other.tree_.threshold).all()
