"""Names from outside are shown and do nothing: in a browser, in Markdown, in YAML, on a terminal, in JSON."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from processes import run, said

from assay.subject import Subject

EVIL = "document.title='pwned';alert(1)"
NAMES = (
    f"<script>{EVIL}</script>",
    f'"><img src=x onerror="{EVIL}">',
    f"</style></svg><svg onload=\"{EVIL}\">",
    f"[a](javascript:{EVIL}) ![b](x) `c` | d",
    "\0\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b2J",
    "two\nlines: {a: b}\r\n---\n# head",
    "right\u202eleft\u2066x",
    "&lt;b&gt; & ' \" \\ %s {0} {{7*7}}",
    "n" * 100_000,
    "\u2028é\U0001f600\u200b",
)  # fmt: skip
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--dump-dom")  # fmt: skip


class Elements(HTMLParser):
    """The names and attributes of all elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.attributes = set[str](), list[tuple[str, str | None]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def hostile(digits: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The reports of a subject whose every name is hostile, and what the terminal shows."""
    root = tmp_path_factory.mktemp("escapes")
    test = replace(digits.test, classes=NAMES, name=NAMES[0])
    holdout = replace(digits.holdout, classes=NAMES, name=NAMES[1]) if digits.holdout is not None else None
    named = replace(digits, name=NAMES[0] + NAMES[4] + NAMES[5], test=test, holdout=holdout, train=None)
    saved = named.save(root / "<b>&amp;\x1b[31m")
    words = ("audit", saved, "--only", "accuracy,subgroups,explanation", "--limit", "60", "--out", root / "out")
    code, shown, err = run(root / "cache", *words)
    assert code == 0, err
    said(err)
    assert not HIDDEN.search(err.replace(str(saved), ""))
    return root / "out", shown, named.name


def test_the_terminal_shows_no_control_characters(hostile: tuple[Path, str, str]) -> None:
    shown = hostile[1]
    assert not HIDDEN.search(shown)
    assert "\\x1b" in shown
    assert max(map(len, shown.splitlines())) <= 200


def test_json_keeps_every_name_and_stays_ascii(hostile: tuple[Path, str, str]) -> None:
    raw = (hostile[0] / "report.json").read_bytes()
    assert raw.isascii()
    assert json.loads(raw)["name"] == hostile[2]


def test_the_model_card_has_valid_yaml_and_no_markup(hostile: tuple[Path, str, str]) -> None:
    text = (hostile[0] / "report.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["name"] == hostile[2]
    assert not HIDDEN.search(text)
    assert "<" not in body
    assert not re.search(r"(?<!\\)\]\(", body)
    assert "\n# head" not in body


def test_a_browser_runs_nothing_of_it(hostile: tuple[Path, str, str], tmp_path: Path) -> None:
    page = hostile[0] / "report.html"
    assert not HIDDEN.search(page.read_text(encoding="utf-8"))
    assert page.stat().st_size < 5_000_000
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None
    assert title[1].strip() != "pwned"
    assert "CONSOLE" not in done.stderr
    found = Elements()
    found.feed(done.stdout)
    assert "section" in found.names
    assert "script" not in found.names
    assert not [a for a in found.attributes if a[0].startswith("on") or a == ("src", "x")]


def test_errors_show_hostile_names_on_one_plain_line(tmp_path: Path) -> None:
    for words in (("audit", NAMES[4]), ("audit", "--data", NAMES[6]), ("audit", "--only", NAMES[8])):
        code, out, err = run(tmp_path / "cache", *words)
        assert (code, out) == (2, "")
        assert not HIDDEN.search(said(err)[-1])
        assert len(err) < 10_000
