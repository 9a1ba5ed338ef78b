"""The page over runs: what it lists, compares and plots, and what it never shows."""

from __future__ import annotations

import os
import re
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from assay.audit.property import Section
from assay.audit.result import Audit, Effect, Effects
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric
from assay.serve import serve
from assay.serve.app import allowed, create
from assay.serve.runs import find

HOSTILE = "<img src=x onerror=alert(1)>\"&'\ud800"


def made(name: str, value: float, *, half: float = 0.02, data: str = "d", extra: tuple[Metric, ...] = ()) -> Audit:
    top1 = Metric("accuracy.top1", value, value - half, value + half, "Wilson 95%", 100, better="higher", how="arg max")
    section = Section(metrics=[top1, Metric("cost.parameters", 12_345, unit="parameters"), *extra])
    section.findings.append((0.5, f"A finding of {name}."))
    meta = {"data": "digits:test", "hashes": {"test": data}}
    return Audit(name, "quick", 0, {"accuracy": section}, {"accuracy": "Accuracy"}, meta)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    made("plain", 0.9).save(runs / "a")
    made("better", 0.97).save(runs / "deep" / "b")
    before = made("plain", 0.9)
    rows = [Effect("accuracy.top1", 0.9, 0.5, difference=-0.4)]
    Effects("repaired", before, [("m", made("repaired", 0.5, data="other"))], rows).save(runs / "c")
    return runs


@pytest.fixture
def client(root: Path) -> TestClient:
    return TestClient(create(root), base_url="http://127.0.0.1:8000")


class Tags(HTMLParser):
    """The attributes of every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def keys(client: TestClient) -> dict[str, str]:
    return {name: key for key, name in re.findall(r'<option value="(\w+)"[^>]*>([^<]*)', client.get("/").text)}


def test_the_list_has_every_run_and_leads_to_its_report(client: TestClient, root: Path) -> None:
    text = client.get("/").text
    assert "3 runs below" in text
    assert list(keys(client)) == ["a", "c", "deep/b"]
    assert text.count("<td>audit</td>") == 2
    assert text.count("<td>repair</td>") == 1
    links = [a["href"] for t, a in Tags(text).found if t == "a" and "/runs/" in (a["href"] or "")]
    for link, folder in zip(links, ("a", "c", "deep/b"), strict=True):
        answer = client.get(str(link))
        assert answer.content == (root / folder / "report.html").read_bytes()
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_comparison_shows_differences_with_intervals(client: TestClient) -> None:
    of = keys(client)
    text = client.get("/compare", params={"a": of["a"], "b": of["deep/b"]}).text
    assert "+0.070" in text
    assert "[+0.042, +0.098]" in text
    assert "▲ better" in text
    assert "same test data" not in text
    back = client.get("/compare", params={"a": of["deep/b"], "b": of["a"]}).text
    assert "▼ worse" in back
    itself = client.get("/compare", params={"a": of["a"], "b": of["a"]}).text
    assert "better</td>" not in itself
    assert "not measured on the same test data" in client.get("/compare", params={"a": of["a"], "b": of["c"]}).text


def test_a_metric_is_plotted_over_every_run_that_has_it(client: TestClient) -> None:
    text = client.get("/metric", params={"name": "accuracy.top1"}).text
    circles = [a for t, a in Tags(text).found if t == "circle"]
    assert len(circles) == 3
    places = [float(str(c["cx"])) for c in circles]
    assert places[1] < places[0] < places[2]  # 0.5, 0.9, 0.97 of c, a, deep/b
    assert text.count('class="l"') == 3


def test_runs_that_cannot_be_read_are_listed_with_the_reason(client: TestClient, root: Path) -> None:
    for name, content in (
        ("empty", ""),
        ("other", '{"schema": "x/1"}'),
        ("half", (root / "a/report.json").read_text()[:200]),
    ):
        (root / name).mkdir()
        (root / name / "report.json").write_text(content)
    os.mkfifo(root / "pipe.d")
    (root / "fifo").mkdir()
    os.mkfifo(root / "fifo" / "report.json")
    (root / "loop").mkdir()
    (root / "loop" / "report.json").symlink_to("report.json")
    (root / "odd").mkdir()
    odd = (root / "a/report.json").read_text().replace('"better": "higher"', '"better": ["higher"]')
    (root / "odd/report.json").write_text(odd)
    text = client.get("/").text
    listed = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert set(listed) == {"empty", "other", "half", "fifo", "loop", "odd"}
    assert "link to itself" in listed["loop"]
    assert "better is" in listed["odd"]
    assert "no valid JSON" in listed["half"]
    assert "no schema" in listed["other"]
    assert "no plain file" in listed["fifo"]
    assert "3 runs below" in text


def test_a_changed_report_is_read_again(client: TestClient, root: Path) -> None:
    assert "A finding of plain." in client.get("/").text
    made("renamed", 0.9).save(root / "a")
    assert "A finding of renamed." in client.get("/").text


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../../etc/passwd",
        "/runs/%2e%2e/%2e%2e/etc/passwd",
        "/runs/KEY/..%2f..%2fsecret.txt",
        "/runs/KEY/%2e%2e%2fsecret.txt",
        "/runs/KEY/metrics.parquet",
        "/runs/KEY/report.html%00",
        "/runs/a/report.html",
        "/runs//report.html",
        "/compare?a=../a&b=KEY",
        "/metric?name=../secret",
        "/secret.txt",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_leaves_the_folder(path: str, client: TestClient, root: Path) -> None:
    (root.parent / "secret.txt").write_text("secret")
    (root / "a" / "secret.txt").write_text("secret")
    answer = client.get(path.replace("KEY", keys(client)["a"]))
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "secret" not in answer.text


def test_links_out_of_the_folder_are_not_followed(client: TestClient, root: Path) -> None:
    made("outside", 0.1).save(root.parent / "outside")
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "file").mkdir()
    (root / "file" / "report.json").symlink_to(root.parent / "outside" / "report.json")
    (root / "a" / "report.html").unlink()
    (root / "a" / "report.html").symlink_to(root.parent / "outside" / "report.html")
    text = client.get("/").text
    assert "outside." not in text
    assert "links out of the folder" in text
    assert client.get(f"/runs/{keys(client)['a']}/report.html").status_code == 404


def test_names_are_shown_as_they_are(root: Path) -> None:
    folder = root / "<b>&\"'x"
    hostile = made(HOSTILE, 0.9, extra=(Metric(f"m.{HOSTILE}", 0.5, better="lower", how=HOSTILE),))
    hostile.save(folder)
    (root / os.fsdecode(b"bad\xff")).mkdir()
    (root / os.fsdecode(b"bad\xff") / "report.json").write_text("{}")
    client = TestClient(create(root), base_url="http://localhost")
    pages = [client.get("/").text]
    of = {r.name: r.key for r in find(root)}
    pages.append(client.get("/compare", params={"a": of[folder.name], "b": of[folder.name]}).text)
    (link,) = [a["href"] for t, a in Tags(pages[1]).found if "onerror" in (a.get("href") or "")]
    assert client.get(str(link)).status_code == 404  # the lone surrogate has no form in a URL
    pages.append(client.get("/metric", params={"name": "accuracy.top1"}).text)
    for text in pages:
        assert "<img" not in text
        assert "<b>" not in text
        assert not any(t in ("script", "img", "b") or "onerror" in a for t, a in Tags(text).found)
    assert "bad\ufffd" in pages[0]


def test_nothing_changes_state_and_nothing_comes_from_elsewhere(client: TestClient, root: Path) -> None:
    app = client.app
    routes = [r for r in app.routes if isinstance(r, APIRoute)]  # type: ignore[attr-defined]
    assert len(routes) == len(app.routes)  # type: ignore[attr-defined]
    assert {m for r in routes for m in r.methods} == {"GET"}
    of = keys(client)
    for path in ("/", f"/compare?a={of['a']}&b={of['c']}", "/metric?name=accuracy.top1", "/absent", "/style.css"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert client.request(method, path).status_code in (404, 405)
        if path != "/style.css":
            found = Tags(answer.text).found
            links = [v for _, a in found for k, v in a.items() if k in ("href", "src", "action") and v]
            assert all(v.startswith(("/", "data:", "#")) and not v.startswith("//") for v in links)
            assert not any("style" in a or t in ("script", "style") for t, a in found)


def test_only_this_machines_names_are_answered(root: Path) -> None:
    for header in ("127.0.0.1:8000", "localhost", "[::1]:80", "192.168.0.7:8000", "LOCALHOST:1"):
        assert allowed(header, "127.0.0.1"), header
    for header in ("", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        assert not allowed(header, "127.0.0.1"), header
    assert allowed("box.lan:8000", "box.lan")
    answer = TestClient(create(root), base_url="http://evil.example:8000").get("/")
    assert answer.status_code == 400
    assert "accuracy" not in answer.text


def test_bad_folders_ports_and_a_missing_extra_are_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is no folder"):
        serve(root / "absent", port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match=r"in use.*--port 0"):
        serve(root, port=taken.getsockname()[1])
    with pytest.raises(InputError, match="expected an address of this machine"):
        serve(root, host="203.0.113.1", port=0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"pip install 'assay\[serve\]'"):
        serve(root, port=0)


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    text = TestClient(create(tmp_path), base_url="http://localhost").get("/").text
    assert "No run was found" in text
    assert "assay audit --out" in text
