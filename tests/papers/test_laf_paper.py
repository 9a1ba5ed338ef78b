"""The shams of laf: as many steps at the same rates, all on the extractor loss; the network of the paper."""

from __future__ import annotations

import torch

from assay.data import load_data
from assay.papers.laf import FEATURE, PAPER, _AlignmentAlone, _by_hand, _net, _NoAlignment
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import LAF, forget_set
from assay.unlearn.laf import head_parameters, representations


def test_no_alignment_takes_the_same_first_step_and_another_second() -> None:
    train = load_data("digits:train").limit(150)
    subject = Subject(Supervised(epochs=1).fit(_net((1, 8, 8), (4, 8), 32, 0), train, seed=0), train, train)
    forget, retain = forget_set(train, "class=0")
    seen: dict[str, list[torch.Tensor]] = {}
    for cls in (LAF, _NoAlignment, _AlignmentAlone):
        kept: list[torch.Tensor] = []

        def keep(models: dict, state: object, kept: list[torch.Tensor] = kept) -> None:
            kept.append(torch.cat([p.detach().flatten() for p in models["model"].parameters()]))

        method = cls(feature=FEATURE, steps=1, vae_epochs=15, batch_size=16, lr_ue=1e-3, lr_ra=1e-3)
        method.fit(subject, forget, retain, seed=0, hooks=[keep])  # type: ignore[list-item]
        seen[cls.__name__] = kept
    assert {len(kept) for kept in seen.values()} == {2}
    assert torch.equal(seen["LAF"][0], seen["_NoAlignment"][0])
    assert not torch.equal(seen["LAF"][1], seen["_NoAlignment"][1])
    assert not torch.equal(seen["LAF"][0], seen["_AlignmentAlone"][0])


def test_network_of_the_paper() -> None:
    scale = PAPER.scale("claim")
    net = _net((1, 28, 28), scale["widths"], scale["dim"], 0)
    x = torch.rand(3, 1, 28, 28)
    assert representations(net, x, FEATURE).shape == (3, 256)
    assert head_parameters(net, x, FEATURE) == ["8.weight", "8.bias", "9.weight", "9.bias"]


def test_hand_checks_are_independent_and_exact() -> None:
    found = _by_hand(3)
    assert found["alignment"] < 1e-12
    assert found["extractor"] < 1e-12
    assert found["outside"] == 0
