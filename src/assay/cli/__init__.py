"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

UNHEARD = 141  # as a shell gives it for what SIGPIPE ends
INTERRUPTED = "interrupted; what was finished is kept, and the same command goes on from there"


def main() -> NoReturn:
    """Entry point: exit codes 0 done, 1 not met, 2 bad usage or input, 130 interrupted, 141 the output was closed."""
    try:
        _streams()
        with _answering():
            code = _run()
    except KeyboardInterrupt:  # also while modules are imported
        code = 130
    except BrokenPipeError:
        _discard_output()
        sys.exit(UNHEARD)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # what typer and rich make of it
            _discard_output()
            sys.exit(UNHEARD)
        raise
    except MemoryError:
        _stop(2, "out of memory; expected more of it, or fewer samples (--limit)")
    except OSError as error:
        _discard_output()
        where = f"{error.filename}: " if error.filename else ""
        _stop(2, f"{where}{error.strerror or error}; expected a readable input and a writable output")
    if code == 130:
        _stop(130, INTERRUPTED)
    sys.exit(code)


def _run() -> int:
    import typer

    from assay.cli.app import app
    from assay.runtime.errors import AssayError

    usage: type[Exception] = typer.BadParameter.__bases__[0]  # the base of all that is wrong with a command line
    try:
        code = app(prog_name="assay", standalone_mode=False) or 0
        sys.stdout.flush()
    except usage as error:
        if len(sys.argv) == 1:  # the message is then the help
            print(error, file=sys.stderr)
            sys.exit(2)
        _stop(2, str(error.format_message()))  # type: ignore[attr-defined]
    except AssayError as error:
        _stop(2, str(error))
    except typer.Abort:
        return 130
    return int(code)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Inside the block an interrupt ends the process at once while torch is on its way, and is raised from then on.

    Raised inside torch's native start it would abort the process; before it is loaded there is nothing to tidy up.
    """
    try:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupted)
    except ValueError:  # not the main thread, which interrupts do not reach
        before = None
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _interrupted(number: int, frame: FrameType | None) -> None:
    torch = sys.modules.get("torch")
    loaded = torch is not None and not getattr(torch.__spec__, "_initializing", False)
    while frame is not None and not loaded:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, f"assay: {INTERRUPTED}\n".encode())
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _streams() -> None:
    """Standard streams that take everything: closed ones lead nowhere, letters that they lack are escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # else the next file to be opened would take its place
            with contextlib.suppress(OSError):
                os.close(number)
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # tests replace the streams
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What standard output still holds would fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(code: int, message: str) -> NoReturn:
    """Say why in one line, and exit."""
    from assay.runtime.printable import printable

    with contextlib.suppress(OSError):  # nobody hears; the exit code says it
        print(f"assay: {printable(message, 8000)}", file=sys.stderr, flush=True)
    sys.exit(code)
