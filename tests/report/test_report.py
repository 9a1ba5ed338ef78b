"""The reports: self-contained, escaped, bounded, valid, and written whole or not at all."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import HOSTILE, make_audit, make_effects, plots
from jsonschema import Draft202012Validator
from rich.console import Console

import assay.report
from assay.audit.property import Plot, Section
from assay.audit.result import Audit, Effects
from assay.report import card, compare, notebook, page, save, terminal
from assay.report.charts import IMAGES, SCATTER_POINTS, blocks, draw, thin
from assay.report.svg import Names, Scale
from assay.report.text import number
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric

FILES = ["metrics.parquet", "report.html", "report.json", "report.md"]

SCHEMA = json.loads((Path(assay.report.__file__).parent / "schema" / "assay-1.json").read_text())
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Balanced(HTMLParser):
    """Keeps the tags in order and asserts that every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("which", ["audit", "effects"])
def test_page_is_balanced_self_contained_and_escaped(which: str, request: pytest.FixtureRequest) -> None:
    text = page(request.getfixturevalue(which))
    parsed = Balanced(text)
    assert "script" not in parsed.tags
    assert "&lt;script&gt;" in text
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|src=\"(?!data:image/png;base64,)", text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(parsed.ids)
    assert parsed.tags.count("h1") == 1
    assert {"main", "nav", "figure", "details", "svg"} <= set(parsed.tags)
    assert "needs groups; the subject has none" in text
    assert text.count('role="img"') == text.count("<desc")
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)


def test_effects_are_told_in_words(effects: Effects) -> None:
    text = page(effects)
    better, worse = text.index("Became better"), text.index("Became worse")
    assert better < text.index("calibration.ece goes from") < worse < text.index("privacy.mia.auc goes from")
    assert "▼ worse" in text
    assert "Forgetting" in text
    assert "better →" in text
    assert "Step by step" in text
    assert "Control" in text
    assert ">Control<" not in page(make_effects(control=False))


@pytest.mark.parametrize("which", ["audit", "effects"])
def test_notebook_is_balanced_and_escaped(which: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(which)
    assert "script" not in Balanced(notebook(result)).tags
    assert result._repr_html_() == notebook(result)


@pytest.mark.parametrize("which", ["audit", "effects"])
def test_json_is_strict_and_follows_the_schema(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    result = request.getfixturevalue(which)
    document = strict((save(result, tmp_path / "new" / "run") / "report.json").read_text())
    assert [e.message for e in validator.iter_errors(document)] == []
    assert isinstance(document, dict)
    assert document["kind"] == which
    assert not validator.is_valid({**document, "surprise": 1})
    assert not validator.is_valid({**document, "schema": "assay/2"})
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == FILES


def test_json_equals_to_json_where_all_is_finite(tmp_path: Path) -> None:
    audit = Audit("a", "quick", 0, {"p": Section(metrics=[Metric("p.x", 0.5)])}, {"p": "P"})
    assert (save(audit, tmp_path) / "report.json").read_text() == audit.to_json()


@pytest.mark.parametrize("name", [HOSTILE, 'a"\\\u2028\x85\x00\ud800 €😀', "---", "null", ""])
def test_front_matter_keeps_every_name(name: str) -> None:
    text = card(make_audit(name=name))
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    parsed = yaml.safe_load(front)
    assert parsed["model-index"][0]["name"] == name.replace("\ud800", "\ufffd")
    result = parsed["model-index"][0]["results"][0]
    assert result["task"]["type"] == "classification"
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert {"accuracy", "privacy.mia.auc"} <= {m["type"] for m in result["metrics"]}
    assert "<script" not in body


@pytest.mark.parametrize("which", ["audit", "effects"])
def test_the_hub_reads_every_result_of_the_card(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    result = request.getfixturevalue(which)
    audit = result if isinstance(result, Audit) else result.after
    data = ModelCard.load(save(result, tmp_path) / "report.md").data
    assert data.model_name == result.name
    assert data.library_name == "assay"
    (accuracy,) = [r for r in data.eval_results if r.metric_name == "accuracy.top1"]
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", audit["accuracy.top1"].value)
    assert (accuracy.dataset_type, accuracy.dataset_name, accuracy.dataset_split) == ("digits", "digits", "test")
    named = {r.metric_name for r in data.eval_results}
    assert named >= {"privacy.mia.auc", "calibration.ece"}
    assert all(isinstance(r.metric_value, float) and math.isfinite(r.metric_value) for r in data.eval_results)


def test_card_tables_have_even_rows(effects: Effects) -> None:
    section = card(effects).split("## Effects\n\n")[1].split("\n\n")[0]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in section.splitlines()]
    assert len(widths) > 3
    assert set(widths) == {9}


@pytest.mark.parametrize("which", ["audit", "effects"])
def test_terminal_shows_values_reasons_and_findings(which: str, request: pytest.FixtureRequest) -> None:
    console = Console(file=io.StringIO(), width=140)
    result = request.getfixturevalue(which)
    terminal(result, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "needs groups" in text
    assert "Worst findings" in text
    assert f"{(result if which == 'audit' else result.after)['accuracy.top1'].value:.3f}" in text
    assert ("▼ worse" in text) == (which == "effects")


def test_terminal_does_not_read_markup() -> None:
    console = Console(file=io.StringIO(), width=140)
    terminal(Audit("[red]x[/nope]", "quick", 0, {"p": Section(skipped="[b]why[/c]")}, {"p": "[i]"}), console)
    assert "[red]x[/nope]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_page_stays_small_whatever_the_data() -> None:
    rng = np.random.default_rng(0)
    x, y = np.arange(10**6), rng.random(10**6)
    z = rng.random((1000, 1000))
    classes = [f"class {k} " + "x" * 500 for k in range(1000)]
    section = Section(
        plots=[
            Plot("line", "long", {"a": {"x": x, "y": y, "low": y - 1, "high": y + 1}}),
            Plot("scatter", "many", {"a": {"x": x, "y": y}}),
            Plot("heatmap", "confusion", {"": {"z": z, "x": classes, "y": classes}}),
            Plot("bar", "bars", {"a": {"x": classes, "y": y[:1000]}}),
            *[Plot("images", "i", {"": {"images": rng.integers(0, 256, (30, 150, 150, 3))}})] * 4,
        ],
        metrics=[Metric(f"m.{c}", 0.5, how="h" * 5000) for c in classes],
        tables={"t": [{f"column {j}" * 50: "v" * 5000 for j in range(40)} for _ in range(500)]},
        notes=["n" * 10**5] * 100,
    )
    audit = Audit("big", "quick", 0, {f"p{k}": section for k in range(2)}, {})
    text = page(audit)
    assert len(text.encode()) <= 5_000_000
    Balanced(text)
    assert "Left out to keep this page small" in text


def test_empty_results_still_have_every_report(tmp_path: Path) -> None:
    audit = Audit("", "quick", 0, {}, {})
    effects = Effects("", audit, [("m", audit)], [])
    for k, result in enumerate((audit, effects)):
        save(result, tmp_path / str(k))
        assert sorted(p.name for p in (tmp_path / str(k)).iterdir()) == FILES
        Balanced(page(result))
        Balanced(notebook(result))
        terminal(result, Console(file=io.StringIO()))


def test_unwritable_folder_is_an_input_error_and_leaves_nothing(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written") as caught:
        save(audit, tmp_path / "file")
    assert "\n" not in str(caught.value)
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    with pytest.raises(InputError):
        save(audit, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["report.html"]


def test_compare_pairs_the_last_with_the_first() -> None:
    first, last = make_audit(name="one"), make_audit(1.0, "two")
    compared = compare([first, make_audit(name="middle"), last])
    assert [n for n, _ in compared.steps] == ["middle", "two"]
    assert compared["privacy.mia.auc"].verdict == "worse"
    shown = page(compared)
    assert '<p class="kind">Comparison</p>' in shown
    assert "Worst findings of two" in shown
    assert "repair" not in re.sub(r"<style>.*?</style>", "", shown, flags=re.S)
    assert "steps:" not in card(compared)
    with pytest.raises(InputError, match="at least two"):
        compare([first])


@pytest.mark.parametrize("plot", plots(), ids=lambda p: p.title)
def test_every_plot_is_drawn_or_says_why(plot: Plot) -> None:
    chart = draw(plot, Names())
    Balanced(str(chart.body))
    refused = {"Empty": "No finite values", "Not numbers": "could not be drawn: ValueError"}
    assert refused.get(plot.title, "<title" if plot.kind != "images" else "<img") in chart.body
    assert len(chart.legend) == (len(plot.series) if len(plot.series) > 1 else 0)


@pytest.mark.parametrize("name", ["机场跑道照明系统检测", "高速公路收费站标志与人行横道交通信号灯", "a name of ascii"])
def test_names_of_wide_letters_stay_inside_a_bar_chart(name: str) -> None:
    drawn = str(draw(Plot("bar", "t", {"": {"x": [name, "b"], "y": [0.2, 0.4]}}), Names()).body)
    x, shown = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end"[^>]*>([^<]*)', drawn)[0]
    assert shown.rstrip("…") == name[: len(shown.rstrip("…"))]
    columns = sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in shown)
    assert 6 * columns <= float(x)
    assert columns >= min(len(name), 21)


def test_caps_of_points_and_images() -> None:
    many = {"x": np.arange(5000), "y": np.arange(5000)}
    body = str(draw(Plot("scatter", "s", {"a": many, "b": many}), Names()).body)
    assert body.count("M") <= SCATTER_POINTS
    pictures = np.zeros((40, 4, 4))
    assert str(draw(Plot("images", "i", {"": {"images": pictures}}), Names()).body).count("<img") == IMAGES


def test_thinning_keeps_the_extremes_and_blocks_the_mean() -> None:
    y = np.random.default_rng(0).normal(size=10_001)
    keep = thin(y, 100)
    assert len(keep) <= 102
    assert {int(y.argmin()), int(y.argmax()), 0, 10_000} <= set(keep.tolist())
    z = np.arange(10_000.0).reshape(100, 100)
    assert blocks(z, 50).shape == (50, 50)
    assert blocks(z, 50)[0, 0] == np.mean(z[:2, :2])


@pytest.mark.parametrize("ends", [(0, 0), (-3.7, 12), (1e-9, 2e-9), (5e8, 5e8 + 3), (0.2, 0.95), (-1e299, 1e299)])
def test_scales_hold_their_data_on_round_ticks(ends: tuple[float, float]) -> None:
    scale = Scale.of(np.array([*ends, math.nan, math.inf]), 0, 100)
    assert scale.low <= ends[0] <= ends[1] <= scale.high
    assert 2 <= len(scale.ticks()) <= 12
    labels = [t for _, t in scale.ticks()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "∞"), (-math.inf, "−∞"), (0.0, "0.000"), (-0.0, "0.000"),
     (0.9592, "0.959"), (-0.5, "−0.500"), (12_345, "12,345"), (12.345, "12.35"), (1234.56, "1,235"),
     (2.5e-6, "2.50e−6"), (3e9, "3.00e9")],
)  # fmt: skip
def test_numbers_are_written_for_readers(value: float | None, text: str) -> None:
    assert number(value) == text
