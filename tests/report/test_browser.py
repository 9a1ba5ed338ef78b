"""The page in headless Chromium: quick to open, no console errors, no sideways scrolling on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from assay.audit.result import Audit, Effects
from assay.report import page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]
PROBE = """<iframe id="f" style="width:390px;height:800px;border:0" src="report.html"></iframe>
<script>onload=()=>{const d=f.contentDocument,w=d.documentElement.scrollWidth;
d.querySelectorAll("details").forEach(e=>e.open=true);document.title="probed";
const n=d.querySelectorAll("section").length;
document.body.dataset.result=[w,d.documentElement.scrollWidth,n].join(" ");}</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def run(url: Path, profile: Path) -> tuple[str, str, float]:
    """The page's DOM after loading, Chromium's log, and the seconds it took."""
    assert CHROMIUM is not None
    start = time.perf_counter()
    command = [CHROMIUM, *FLAGS, "--allow-file-access-from-files", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([*command, url.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr, time.perf_counter() - start


@pytest.mark.parametrize("which", ["audit", "effects"])
def test_page_opens_quickly_without_errors_or_overflow(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    result: Audit | Effects = request.getfixturevalue(which)
    (tmp_path / "report.html").write_text(page(result))
    (tmp_path / "blank.html").write_text("<!doctype html><title>blank</title>")
    (tmp_path / "probe.html").write_text(PROBE)
    *_, idle = run(tmp_path / "blank.html", tmp_path / "a")
    _, log, took = run(tmp_path / "report.html", tmp_path / "b")
    assert took - idle <= 2
    assert "CONSOLE" not in log
    dom, log, _ = run(tmp_path / "probe.html", tmp_path / "c")
    assert "CONSOLE" not in log
    found = re.search(r'data-result="(\d+) (\d+) (\d+)"', dom)
    assert found is not None
    closed, opened, sections = map(int, found.groups())
    assert closed <= 390
    assert opened <= 390
    assert sections >= 4
