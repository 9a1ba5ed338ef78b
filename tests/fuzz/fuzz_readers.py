"""Coverage-guided fuzzing of every reader: ``python tests/fuzz/fuzz_readers.py READER|all [-runs=N] [OPTION ..]``.

A case may be read or refused with AssayError. Anything else ends the run with the case in ``crash-*``: another error, a
hang, too much memory, a warning shown, and anything touched outside the folder of the case.
"""

from __future__ import annotations

import importlib
import inspect
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import atheris
from PIL import Image
from reader_table import READERS, Reader
from watching import Watch

from assay.cli import work
from assay.runtime.errors import AssayError

FLAGS = ("-max_len=8192", "-timeout=20", "-rss_limit_mb=3000", "-seed=1", "-print_final_stats=0", "-verbosity=0")
MODULES = (
    "assay.audit.property", "assay.audit.registry", "assay.cli.app", "assay.cli.work", "assay.data.data",
    "assay.data.files", "assay.data.guarded", "assay.data.mapped", "assay.data.skeleton_files", "assay.data.sources",
    "assay.data.tabular", "assay.gates.evidence", "assay.methods", "assay.papers.ledger", "assay.runtime.method",
    "assay.runtime.spec", "assay.runtime.store", "assay.runtime.toml", "assay.subject.adapters.archive",
    "assay.subject.adapters.tree_dump", "assay.subject.adapters.trees",
    "assay.subject.admit", "assay.subject.load", "assay.subject.subject", "assay.unlearn.base",
    "assay.unlearn.forget_sets", "assay.vision.reap_files", "numpy.lib._format_impl", "tomllib._parser",
    "torch._weights_only_unpickler", "zipfile",
)  # fmt: skip
MEMORY = 2 << 30
MEMORY_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None
SHARE = {
    "config": 2,
    "require": 4,
    "policy": 2,
    "only": 4,
    "forget": 2,
    "forget-option": 2,
    "ledger": 4,
    "csv": 2,
    "jsonl": 2,
}


def instrument() -> None:
    """Let the fuzzer see which branches are taken in the readers: not in all of torch, which would take minutes."""
    for name in (*MODULES, work.parse.__module__):
        module = importlib.import_module(name)
        own = [v for v in vars(module).values() if getattr(v, "__module__", None) == name]
        classes = [v for c in own if inspect.isclass(c) for v in vars(c).values()]
        for function in filter(inspect.isfunction, [*own, *classes]):
            atheris.instrument_func(function)


def once(reader: Reader, raw: bytes, watch: Watch) -> None:
    """One case; raises what a user must not see."""
    with watch:
        try:
            reader.read(raw, watch.folder)
        except AssayError as error:
            if len(error.args) != 1 or not str(error).strip():
                raise ValueError("an error without a word") from error


def fuzz(name: str, root: Path, flags: list[str]) -> None:
    """Fuzz one reader in the folder ``root``. Never returns: libFuzzer ends the process."""
    instrument()
    Image.MAX_IMAGE_PIXELS = 1 << 18  # pictures of few bytes and many pixels are read, but not a thousand times a run
    reader = READERS[name]
    corpus = root / "corpus"
    corpus.mkdir()
    for k, seed in enumerate(reader.seeds()):
        (corpus / str(k)).write_bytes(seed)
        reader_ends(reader, seed, root)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    watch = Watch(root)
    text = ("-only_ascii=0",) if reader.text else ()
    atheris.Setup([sys.argv[0], str(corpus), *FLAGS, *text, *flags], lambda raw: once(reader, raw, watch))
    atheris.Fuzz()


def reader_ends(reader: Reader, seed: bytes, root: Path) -> None:
    """Read a seed once before the memory is limited: what it imports is then there."""
    try:
        reader.read(seed, root)
    except AssayError:
        return


def apart(name: str, flags: list[str]) -> int:
    """Fuzz one reader in a process and a folder of its own; the exit code."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=MEMORY_DISK) as root:
        return subprocess.run([sys.executable, __file__, f"--in={root}", name, *flags], check=False).returncode


def everything(runs: int, flags: list[str]) -> int:
    """Every reader in a process of its own, cheap ones more often; the number of those that failed."""
    weights = {name: SHARE.get(name, 1) for name in READERS}
    failed = []
    for name, weight in weights.items():
        share, start = -(-runs * weight // sum(weights.values())), time.monotonic()
        code = apart(name, [f"-runs={share}", *flags])
        print(f"{name}: {share} cases in {time.monotonic() - start:.0f} s, exit {code}", flush=True)
        failed += [name] if code else []
    print(f"failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen, options = sys.argv[1], sys.argv[2:]
    if chosen == "all":
        amount = next((int(o.removeprefix("-runs=")) for o in options if o.startswith("-runs=")), 100_000)
        sys.exit(min(everything(amount, [o for o in options if not o.startswith("-runs=")]), 1))
    if chosen.startswith("--in="):
        fuzz(options[0], Path(chosen.removeprefix("--in=")), options[1:])
    sys.exit(min(abs(apart(chosen, options)), 1))
