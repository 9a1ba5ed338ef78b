"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

INTERRUPTED = "interrupted; what was finished is kept, and the same command goes on from there"


def main() -> NoReturn:
    """Entry point: exit codes 0 done, 1 not met, 2 bad usage or input, 130 interrupted."""
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
    except (KeyboardInterrupt, typer.Abort):
        _stop(130, INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _stop(2, f"{where}{error.strerror or error}; expected a readable input and a writable output")
    if code == 130:
        _stop(130, INTERRUPTED)
    sys.exit(code)


def _stop(code: int, message: str) -> NoReturn:
    """Say why in one line, and exit."""
    print(f"assay: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
