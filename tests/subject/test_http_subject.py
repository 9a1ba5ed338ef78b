"""An endpoint is asked once about a sample, patiently, within its budget, and leaves no address behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from assay.audit import audit, plan
from assay.audit.run import fingerprint
from assay.runtime.errors import BudgetError, InputError
from assay.runtime.random import torch_rng
from assay.subject import Access, Subject, load

FAST = "backoff=0.01&timeout=5"


class Server(ThreadingHTTPServer):
    """Classifies by the sign of the first feature; ``script`` holds what the next requests are answered instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.form, self.script = "scores", list[Any]()
        self.seen, self.headers, self.requests = list[tuple[float, ...]](), list[dict[str, str]](), 0
        self.delay = 0.0

    def url(self, options: str = FAST, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_port}/predict#{options}"

    def handle_error(self, *_: object) -> None:
        """A client that gave up waiting is what some tests are about."""

    def answer(self, inputs: list[Any]) -> dict[str, Any]:
        x = np.array(inputs)
        self.seen += [tuple(row) for row in x.reshape(len(x), -1).tolist()]
        p = 1 / (1 + np.exp(-4 * x.reshape(len(x), -1)[:, 0]))
        if self.form == "labels":
            return {"labels": (p > 0.5).astype(int).tolist()}
        return {"scores": np.stack([1 - p, p], 1).tolist()}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.requests += 1
        self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(self.server.delay)
        status, headers, reply = self.server.script.pop(0) if self.server.script else (200, {}, None)
        raw = json.dumps(self.server.answer(body["inputs"])).encode() if reply is None else reply
        self.send_response(status)
        for name, value in {"content-length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def source(tmp_path: Path) -> str:
    x = torch.randn(150, 3, generator=torch_rng(0, "http")).clamp(-2, 2)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=(x[:, 0] > 0).long().numpy(), bounds=np.array([-2.0, 2.0]))
    return f"npz:{tmp_path / 'data.npz'}"


def everything(subject: Subject) -> torch.Tensor:
    assert subject.holdout is not None
    return torch.cat([subject.test.x, subject.holdout.x])


def test_scores_arrive_in_order_and_no_sample_is_asked_twice(server: Server, source: str) -> None:
    subject = load(server.url(f"{FAST}&batch=7"), data=source)
    assert subject.access == Access.SCORE
    x = torch.cat([everything(subject), subject.test.x[:5]])
    logits = subject.model(x)
    assert torch.allclose(logits.softmax(1)[:, 1], torch.sigmoid(4 * x[:, 0]), atol=1e-5)
    assert len(server.seen) == len(set(server.seen)) == 150
    again = load(server.url(), data=source)
    assert torch.equal(again.model(x), logits)
    assert len(server.seen) == 150


def test_another_process_and_another_version(server: Server, source: str) -> None:
    """What a finished object had asked is on disk; a new version of what is deployed is asked anew."""
    subject = load(server.url(), data=source)
    subject.model(everything(subject))
    del subject
    fresh = load(server.url(), data=source)
    fresh.model(everything(fresh))
    assert len(server.seen) == 150
    load(server.url(f"{FAST}&version=2"), data=source)
    assert len(server.seen) == 166


def test_labels_grant_decisions_only(server: Server, source: str) -> None:
    server.form = "labels"
    subject = load(server.url(), data=source)
    assert subject.access == Access.DECISION
    found = audit(subject, only=["accuracy", "calibration"])
    assert found["accuracy.top1"].value == 1
    assert found.sections["calibration"].skipped == "needs SCORE access; the subject grants DECISION"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_endpoints_are_asked_again(server: Server, source: str, status: int) -> None:
    server.script = [(status, {}, b"busy")] * 3
    load(server.url(), data=source)
    assert server.requests == 4


def test_retry_after_is_honoured(server: Server, source: str) -> None:
    server.script = [(429, {"retry-after": "0.3"}, b"")]
    start = time.monotonic()
    load(server.url(), data=source)
    assert time.monotonic() - start >= 0.3
    server.script = [(429, {"retry-after": "3600"}, b"")]
    with pytest.raises(InputError, match="asks to wait 3600 s; what was answered is kept"):
        load(server.url(f"{FAST}&version=2"), data=source)


def test_slow_and_absent_endpoints_are_one_line(server: Server, source: str) -> None:
    server.delay = 0.5
    with pytest.raises(InputError, match=r"^http endpoint: no answer \(ReadTimeout\) in 2 attempts"):
        load(server.url("timeout=0.05&retries=1&backoff=0.01"), data=source)
    with pytest.raises(InputError, match=r"no answer \(ConnectError\) in 1 attempts"):
        load("http://127.0.0.1:9/predict#retries=0", data=source)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {}, b"<html>"), "cannot read the answer"),
        ((200, {}, b'{"outputs": 1}'), "cannot read the answer"),
        ((200, {}, b'{"scores": [[0.5, 0.5]]}'), "1 answers to 16 samples"),
        ((200, {}, json.dumps({"scores": [[1, 2, 3]] * 16}).encode()), "expected scores of 2 classes"),
        ((200, {}, json.dumps({"labels": [0.5] * 16}).encode()), "labels are float64"),
        ((200, {}, json.dumps({"labels": ["cat"] * 16}).encode()), "class 'cat' is none of the data's"),
        ((404, {}, b"no"), "status 404"),
        ((401, {}, b"no"), "expected credentials"),
        ((413, {}, b"no"), "expected a smaller #batch="),
        ((302, {"location": "http://other.example/"}, b""), "points to another address"),
    ],
)
def test_answers_of_no_use_are_one_line(server: Server, source: str, reply: Any, message: str) -> None:
    server.script = [reply]
    with pytest.raises(InputError, match=message) as raised:
        load(server.url(), data=source)
    assert "\n" not in str(raised.value)
    assert "127.0.0.1" not in str(raised.value)
    assert server.requests == 1


def test_an_answer_of_no_use_is_not_kept(server: Server, source: str) -> None:
    server.script = [(200, {}, json.dumps({"scores": [[0.5, None]] * 16}).encode())]
    with pytest.raises(InputError, match="NaN or infinite scores"):
        load(server.url(FAST), data=source)
    assert load(server.url(FAST), data=source).access == Access.SCORE


@pytest.mark.parametrize(
    ("options", "message"),
    [("budget=0", "at least one"), ("timeout=soon", "a number"), ("batches=3", "did you mean 'batch'"), ("x", "x")],
)
def test_bad_options(server: Server, source: str, options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(server.url(options), data=source)


def test_the_budget_ends_a_property_and_not_the_audit(server: Server, source: str) -> None:
    subject = load(server.url(f"{FAST}&budget=150"), data=source)
    found = audit(subject, only=["accuracy", "robustness.decision", "hygiene"], profile="standard")
    assert found.sections["accuracy"].skipped is None
    assert found.sections["hygiene"].skipped is None
    assert "the budget of 150 queries is spent" in str(found.sections["robustness.decision"].skipped)
    assert len(server.seen) <= 150
    with pytest.raises(BudgetError):
        load(server.url(f"{FAST}&budget=5&version=2"), data=source)


def test_workers_share_the_budget(server: Server, source: str) -> None:
    """A subject travels to workers as it does here; the file that counts is theirs together."""
    subject = load(server.url(f"{FAST}&budget=100"), data=source)
    there = cloudpickle.loads(cloudpickle.dumps(subject))
    x = everything(subject)
    there.model(x[:80])
    subject.model(x[:20])
    with pytest.raises(BudgetError, match="budget of 100"):
        subject.model(x)
    assert len(server.seen) <= 100
    assert fingerprint(there) == fingerprint(subject)


def test_no_address_and_no_secret_in_a_report(
    server: Server, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_HTTP_AUTHORIZATION", "Bearer s3cret-token")
    subject = load(server.url(), data=source)
    found = audit(subject, only=["accuracy", "cost"])
    assert server.headers[0]["authorization"] == "Bearer s3cret-token"
    assert "an endpoint is not timed" in str(found.sections["cost"].skipped)
    folder = found.save(tmp_path / "out")
    for file in (*folder.iterdir(), *(tmp_path / "cache").rglob("*.npz")):
        raw = file.read_bytes()
        assert b"s3cret" not in raw
        assert b"127.0.0.1" not in raw
        assert str(server.server_port).encode() + b"/predict" not in raw


def test_a_plan_counts_queries_and_asks_nothing_more(server: Server, source: str) -> None:
    subject = load(server.url(), data=source)
    before = len(server.seen)
    rows = {r.name: r for r in plan(subject)}
    assert rows["robustness.linf"].forward > 10_000
    assert rows["cost"].forward == 0
    assert len(server.seen) == before
