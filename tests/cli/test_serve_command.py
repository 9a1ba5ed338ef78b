"""`assay serve` as a process: pages in headless Chromium, and how it ends."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cli_processes import Cli, start

from assay.audit.property import Section
from assay.audit.result import Audit
from assay.runtime.metric import Metric

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]
PROBE = """<iframe id="f" style="width:390px;height:800px;border:0" src="NAME"></iframe>
<script>onload=()=>{document.body.dataset.width=f.contentDocument.documentElement.scrollWidth}</script>"""
NAMES = ("accuracy.top1", "calibration.ece", "robustness.linf.accuracy@0.1", "privacy.mia.loss.auc")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for k, name in enumerate(
        ("digits", "digits-trades", "deep/a-run-with-a-rather-long-name-that-a-phone-cannot-hold")
    ):
        values = [0.95 - 0.06 * k, 0.03 + 0.02 * k, 0.16 + 0.3 * k, 0.55 - 0.02 * k]
        better = ("higher", "lower", "higher", "lower")
        metrics = [
            Metric(n, v, v - 0.02, v + 0.02, "bootstrap 95%", 638, "", b, "on 638 samples of digits:test")  # type: ignore[arg-type]
            for n, v, b in zip(NAMES, values, better, strict=True)
        ]
        section = Section(metrics=metrics, findings=[(0.5, "Confidences exceed the accuracy by 3% on average.")])
        meta = {"data": "digits:test", "hashes": {"test": "d"}}
        Audit("digits", "quick", 0, {"accuracy": section}, {"accuracy": "Accuracy"}, meta).save(folder / name)
    (folder / "broken").mkdir()
    (folder / "broken" / "report.json").write_text("{")
    return folder


def served(runs: Path, cache: Path) -> tuple[subprocess.Popen[str], str]:
    process = start(cache, "serve", runs, "--port", 0)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"serving .* at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C ends it\)\n", line)
    assert found is not None, line
    return process, found[1]


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = served(runs, tmp_path_factory.mktemp("cache"))
    yield url
    process.kill()
    process.communicate()


def paths(address: str) -> list[str]:
    index = httpx.get(address).text
    keys = re.findall(r'<option value="(\w+)"', index)
    return ["/", f"/compare?a={keys[1]}&b={keys[2]}", "/metric?name=accuracy.top1", f"/runs/{keys[0]}/report.html"]


def chromium(url: str, profile: Path) -> tuple[str, str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_every_page_opens_without_errors_and_fits_a_phone(which: int, address: str, tmp_path: Path) -> None:
    path = paths(address)[which]
    dom, log = chromium(address + path, tmp_path / "a")
    assert "CONSOLE" not in log, log
    assert (">All runs<", ">Accuracy<", "<circle", ">Key metrics<")[which] in dom
    sheet = httpx.get(f"{address}/style.css").text
    page = httpx.get(address + path).text.replace(
        '<link rel="stylesheet" href="/style.css">', f"<style>{sheet}</style>"
    )
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "probe.html").write_text(PROBE.replace("NAME", "page.html"))
    dom, _ = chromium((tmp_path / "probe.html").as_uri(), tmp_path / "b")
    width = re.search(r'data-width="(\d+)"', dom)
    assert width is not None
    assert int(width[1]) <= 390


def test_it_answers_and_ctrl_c_exits_130(runs: Path, tmp_path: Path) -> None:
    process, url = served(runs, tmp_path)
    assert "3 runs below" in httpx.get(url).text
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.startswith("assay: interrupted")
    assert len(err.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line(cli: Cli, runs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = cli("serve", runs, "--port", taken.getsockname()[1])
    assert ran.code == 2
    assert "in use" in ran.complaint()
    assert "is no folder" in cli("serve", runs / "absent").complaint()
    assert cli("serve", runs, "--port", 70_000).code == 2
