"""Every written paper: metadata complete, names resolve, smoke runs, claims decide, shams refute what they name."""

import importlib
import math
import time
from types import ModuleType

import pytest
import torch

from assay.papers import catalogue
from assay.papers.model import Table, check_module, outcome
from assay.papers.runner import run_seed
from assay.runtime.random import derive

SLUGS = catalogue.written()


def _smoke(module: ModuleType, seed: int = 0) -> dict[str, Table]:
    result = run_seed(module.PAPER.slug, "smoke", derive(seed, "contract"))
    return {name: Table.joined({0: Table.of(arm["rows"])}) for name, arm in result["arms"].items()}


@pytest.fixture(scope="module", params=SLUGS)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return catalogue.load(request.param)


@pytest.fixture(scope="module")
def tables(module: ModuleType) -> dict[str, Table]:
    return _smoke(module)


def test_there_are_papers() -> None:
    assert SLUGS


def test_metadata_is_complete(module: ModuleType) -> None:
    paper = check_module(module)
    assert module.__name__.endswith(paper.slug.replace("-", "_"))
    assert module.__doc__
    for name in ("title", "authors", "arxiv", "room", "kind", "claim", "headline"):
        assert getattr(paper, name), name
    assert 1950 <= paper.year <= 2100
    assert paper.scale("claim").seeds >= 5
    assert all(len(text) > 10 for text in paper.shams.values())


def test_implements_resolves(module: ModuleType) -> None:
    for name in module.PAPER.implements:
        room, _, public = name.rpartition(".")
        package = importlib.import_module(f"assay.{room}")
        assert public in package.__all__, name
        assert callable(getattr(package, public))


def test_claims_decide_and_name_shams(module: ModuleType, tables: dict[str, Table]) -> None:
    paper = module.PAPER
    for table in tables.values():
        claims = module.claims(table)
        assert any(c.key for c in claims)
        assert len({c.text for c in claims}) == len(claims)
        assert all(c.verdict in ("holds", "refuted", "undecided") and c.to_dict() for c in claims)
        assert {s for c in claims for s in c.refuted_by} == set(paper.shams)


def test_exact_claims_hold_and_shams_refute_them(module: ModuleType, tables: dict[str, Table]) -> None:
    for claim in module.claims(tables[""]):
        assert claim.rule != "exact" or claim.verdict == "holds", claim.text
    for sham in module.PAPER.shams:
        for claim in module.claims(tables[sham]):
            if claim.rule == "exact" and sham in claim.refuted_by:
                assert claim.verdict == "refuted", (sham, claim.text)


def test_smoke_is_quick_deterministic_and_leaves_the_global_generator(
    module: ModuleType, tables: dict[str, Table]
) -> None:
    state = torch.random.get_rng_state()
    start = time.process_time()
    again = _smoke(module)
    assert time.process_time() - start <= 6  # 3 on a machine with nothing else to do
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.keys() == tables.keys()
    for name, table in tables.items():
        assert len(table.rows) == len(again[name].rows)
        for row, other in zip(table.rows, again[name].rows, strict=True):
            assert row.keys() == other.keys()
            assert all(_same(row[k], other[k]) for k in row), (name, row, other)


def _same(a: object, b: object) -> bool:
    """Equal; of numbers, but for what solvers leave, which depends on where in memory their arrays lie."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
    return a == b


def test_seed_matters(module: ModuleType, tables: dict[str, Table]) -> None:
    assert _smoke(module, seed=1)[""] != tables[""]


def test_sham_is_no_baseline(module: ModuleType, tables: dict[str, Table]) -> None:
    real = tables[""].rows
    arms = {r.get("arm") for r in real}
    assert set(module.PAPER.baselines) <= arms
    baselines = [_plain(real, arm) for arm in module.PAPER.baselines]
    for sham in module.PAPER.shams:
        changed = [a for a in arms if _plain(tables[sham].rows, a) != _plain(real, a)]
        assert changed, f"{sham} changes nothing"
        assert {r.get("arm") for r in tables[sham].rows} == arms
        for arm in changed:
            assert _plain(tables[sham].rows, arm) not in baselines, (sham, arm)


def _plain(rows: tuple, arm: object) -> list:
    return [{k: v for k, v in r.items() if k != "arm"} for r in rows if r.get("arm") == arm]


def test_figure(module: ModuleType, tables: dict[str, Table]) -> None:
    assert module.figure(tables[""]).axes


def test_outcome_is_reproduced_by_exact_papers(module: ModuleType, tables: dict[str, Table]) -> None:
    claims = {name: module.claims(table) for name, table in tables.items()}
    if all(c.rule == "exact" for c in claims[""] if c.key):
        assert outcome(claims.pop(""), claims) == "reproduced"
