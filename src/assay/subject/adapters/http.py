"""``http://..`` and ``https://..``: a prediction endpoint.

The endpoint is sent ``{"inputs": [[...], ...]}`` by POST, samples nested as they are shaped, and answers
``{"scores": [[...], ...]}``, one list of numbers a sample, or ``{"labels": [...]}``, integers from 0 or names of
classes. Options stand behind a #: ``https://host/predict#budget=10000&timeout=5&batch=64``.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import time
import weakref
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.store import Store, key_of
from assay.subject.adapters.base import Ask, Backend, black_box, read_options
from assay.subject.adapters.function import Budget
from assay.subject.subject import Subject

WHERE = "http endpoint"  # all that messages and reports call it: an address may hold a secret
AUTHORIZATION = "ASSAY_HTTP_AUTHORIZATION"
AGAIN = (429, 500, 502, 503, 504)
PROBE = 16
LONGEST = 60.0  # seconds of one pause
FLUSH = 2.0  # seconds between two writes of the cache


@dataclass(frozen=True)
class Options:
    """What stands behind the # of an address.

    ``budget``: the most samples asked in one run (None: no limit); ``timeout``: seconds for one request; ``batch``: the
    most samples in one; ``retries`` after failures that may pass, with pauses from ``backoff`` seconds on, doubled each
    time; ``version``: a name for what is deployed, so that answers of another version are asked for anew.
    """

    budget: int | None = None
    timeout: float = 10.0
    batch: int = 64
    retries: int = 5
    backoff: float = 0.5
    version: str = ""

    @classmethod
    def read(cls, fragment: str) -> Options:
        """Options from ``name=value&..``; InputError for unknown names and values out of range."""
        given: dict[str, Any] = {}
        kinds = {"budget": int, "timeout": float, "batch": int, "retries": int, "backoff": float, "version": str}
        for key, text in read_options(fragment, [f.name for f in fields(cls)], WHERE).items():
            try:
                given[key] = kinds[key](text)
            except ValueError as error:
                raise InputError(f"{WHERE}: {key}={text!r}; expected a number") from error
        made = cls(**given)
        if made.batch < 1 or not made.timeout > 0 or made.retries < 0 or made.backoff < 0:
            raise InputError(f"{WHERE}: {fragment}; expected batch >= 1, timeout > 0, retries >= 0 and backoff >= 0")
        return made


def load_http(rest: str, data: dict[str, Data | None]) -> Subject:
    """The subject behind ``http:REST``; see the module's text for what it has to answer."""
    return _load(f"http:{rest}", data)


def load_https(rest: str, data: dict[str, Data | None]) -> Subject:
    """The subject behind ``https:REST``; see the module's text for what it has to answer."""
    return _load(f"https:{rest}", data)


def _load(address: str, data: dict[str, Data | None]) -> Subject:
    url, _, fragment = address.partition("#")
    options = Options.read(fragment)
    identity = key_of(http=url, version=options.version)
    budget = Budget(options.budget) if options.budget is not None else None
    ask = Backend(partial(_open, url, options, identity, budget))
    return black_box(ask, data, where=WHERE, digest=identity, probe=PROBE, remote=True)


def _open(url: str, options: Options, identity: str, budget: Budget | None) -> Ask:
    store = Store()
    kept = (str(store.root), identity)
    cache = _CACHES.get(kept) or _CACHES.setdefault(kept, Cache(identity, store))
    return Endpoint(url, options, cache, budget)


class Cache:
    """Answers by the content of the sample, kept in the result store as one archive for what each few seconds gave."""

    def __init__(self, identity: str, store: Store) -> None:
        self.identity, self.store = identity, store
        self.known: dict[bytes, Any] = {}
        self.fresh: list[bytes] = []
        self.form: tuple[int, ...] | None = None
        self.next, self.written = 0, time.monotonic()
        self.read()

    def _key(self) -> str:
        return key_of(answers=self.identity, part=self.next)

    def read(self) -> None:
        """Take in the archives that this or another process has written."""
        while (part := self.store.get(self._key())) is not None:
            keys, self.form = part["keys"].tobytes(), part["rows"].shape[1:]
            self.known.update((keys[32 * i : 32 * i + 32], row) for i, row in enumerate(part["rows"]))
            self.next += 1

    def add(self, keys: list[bytes], rows: np.ndarray) -> None:
        """Keep the rows (k, ...) under their keys; they are written with the first ones that come two seconds later."""
        if self.form not in (None, rows.shape[1:]):
            raise InputError(f"{WHERE}: answers of shape {rows.shape[1:]} after {self.form}; expected one form, always")
        self.form = rows.shape[1:]
        self.known.update(zip(keys, rows, strict=True))
        self.fresh += keys
        if time.monotonic() - self.written > FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self.fresh:
            fresh, self.fresh = self.fresh, []
            rows = np.stack([self.known[k] for k in fresh])
            self.read()
            self.store.put(self._key(), {"keys": np.frombuffer(b"".join(fresh), np.uint8), "rows": rows})
            self.next += 1
        self.written = time.monotonic()


_CACHES: weakref.WeakValueDictionary[tuple[str, str], Cache] = weakref.WeakValueDictionary()  # of this process


class Endpoint:
    """Asks the endpoint about samples that it was never asked about; a call for (n, ...) gives n answers."""

    def __init__(self, url: str, options: Options, cache: Cache, budget: Budget | None) -> None:
        try:
            import httpx
        except ImportError as error:
            raise InputError(f"{WHERE}: needs the package httpx; expected pip install 'assay[http]'") from error
        secret = os.environ.get(AUTHORIZATION)
        headers = {"authorization": secret} if secret else {}
        self.client = httpx.Client(timeout=options.timeout, headers=headers, follow_redirects=False)
        self.url, self.options, self.cache, self.budget = url, options, cache, budget
        weakref.finalize(self, cache.flush)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        kind = f"{x.dtype} {x.shape[1:]}".encode()
        keys = [hashlib.sha256(kind + np.ascontiguousarray(row).tobytes()).digest() for row in x]
        if any(k not in self.cache.known for k in keys):
            self.cache.read()
        place = {k: i for i, k in enumerate(keys) if k not in self.cache.known}  # one for each sample
        new = list(place.values())
        try:
            for start in range(0, len(new), self.options.batch):
                rows = new[start : start + self.options.batch]
                if self.budget is not None:
                    self.budget.take(len(rows))
                self.cache.add([keys[i] for i in rows], self._answers(x[rows]))
        except BaseException:  # whatever ends the audit, what was paid for is kept
            self.cache.flush()
            raise
        return np.stack([self.cache.known[k] for k in keys])

    def _answers(self, x: np.ndarray) -> np.ndarray:
        """What one request gives: (k, c) scores or (k,) labels."""
        response = self._post({"inputs": x.tolist()})
        try:
            body = response.json()
            kind = next(k for k in ("scores", "labels") if k in body)
            found = np.array(body[kind], dtype=np.float64) if kind == "scores" else np.array(body[kind])
        except (ValueError, TypeError, StopIteration) as error:
            raise InputError(
                f'{WHERE}: cannot read the answer; expected JSON {{"scores": [[..], ..]}} or {{"labels": [..]}}'
            ) from error
        kinds = "f" if kind == "scores" else "iuU"
        if found.ndim not in ((1, 2) if kind == "scores" else (1,)) or found.dtype.kind not in kinds:
            raise InputError(f"{WHERE}: {kind} are {found.dtype} of shape {found.shape}; expected one row a sample")
        if kind == "scores" and not np.isfinite(found).all():  # not kept, so that it is asked for again
            raise InputError(f"{WHERE}: answers with NaN or infinite scores; expected finite ones")
        if len(found) != len(x):
            raise InputError(f"{WHERE}: {len(found)} answers to {len(x)} samples; expected one each")
        return found

    def _post(self, body: dict[str, Any]) -> Any:
        """One request that succeeds, after pauses where the endpoint is busy or does not answer."""
        import httpx

        pause, failure = self.options.backoff, ""
        for attempt in range(self.options.retries + 1):
            wait = pause
            try:
                response = self.client.post(self.url, json=body)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise InputError(f"{WHERE}: the address cannot be used; expected http(s)://HOST[:PORT]/PATH") from error
            except httpx.RequestError as error:
                failure = f"no answer ({type(error).__name__})"
            else:
                if response.is_success:
                    return response
                failure = f"status {response.status_code}"
                if response.status_code not in AGAIN:
                    raise InputError(f"{WHERE}: {failure}{_hint(response.status_code)}")
                wait = max(pause, _asked_to_wait(response.headers.get("retry-after", "")))
            if wait > LONGEST:
                raise InputError(f"{WHERE}: {failure}, and asks to wait {wait:.0f} s; what was answered is kept")
            if attempt < self.options.retries:
                time.sleep(wait)
            pause = min(2 * pause, LONGEST)
        raise InputError(f"{WHERE}: {failure} in {self.options.retries + 1} attempts; expected an answer")


def _asked_to_wait(text: str) -> float:
    """The seconds of a Retry-After header: a number, or a date."""
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _hint(status: int) -> str:
    if 300 <= status < 400:
        return " (it points to another address); expected the address that answers itself"
    if status in (401, 403):
        return f"; expected credentials that it takes (environment {AUTHORIZATION})"
    return "; expected a smaller #batch=" if status == 413 else "; expected 200"
