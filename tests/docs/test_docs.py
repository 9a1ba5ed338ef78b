"""The documentation builds without a warning, with a page for every paper, and its figures are those of the ledger."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from assay.papers import ledger

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra 'docs')")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_paper_and_room_has_a_page_that_the_index_links(site: Path) -> None:
    catalogue = json.loads((ROOT / "src/assay/catalogue.json").read_text())
    index = (site / "papers/index.html").read_text()
    for row in catalogue["papers"]:
        assert (site / f"papers/{row['slug']}.html").exists()
        assert f'href="{row["slug"]}.html"' in index
    for method in catalogue["methods"]:
        room, _, name = method["name"].partition(".")
        assert f'id="assay.{room}.{name}"' in (site / f"rooms/{room}.html").read_text(), method["name"]


def test_every_attack_stands_under_its_access(site: Path) -> None:
    sections = (site / "attacks.html").read_text().split('<h2 id="')[1:]
    text = {section.split('"')[0]: section for section in sections}
    assert list(text) == ["decision", "score", "gradient", "weights"]
    assert ">CGBA<" in text["decision"]
    assert ">Square<" in text["score"]
    assert ">AutoAttack<" in text["gradient"]
    assert ">GDUAP<" in text["weights"]


def test_verdicts_on_the_page_are_those_of_the_ledger(site: Path) -> None:
    last = ledger.read("comp-sum")[-1]
    text = (site / "papers/comp-sum.html").read_text()
    assert f"base seed {last['base_seed']}" in text
    assert text.count("<td>refuted</td>") >= sum(len(c) > 0 for c in last["shams"].values())
    assert ("was run again and gave the same tables" in text) == ("confirms" in last)


def test_pages_need_no_network(site: Path) -> None:
    for page in ("index.html", "papers/index.html", "rooms/attacks.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', (site / page).read_text())
        assert [u for u in loaded if "canonical" not in u] == []


@pytest.mark.parametrize("figure", sorted((ROOT / "docs/gallery").glob("*.svg")), ids=lambda p: p.stem)
def test_a_figure_of_the_gallery_was_drawn_from_a_recorded_run(figure: Path) -> None:
    key = re.search(r"<!-- ledger (\w+) -->", figure.read_text()[:200])
    assert key is not None
    assert key[1] in {r["key"] for r in ledger.read(figure.stem)}
