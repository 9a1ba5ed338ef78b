"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point: exit codes 0 done, 1 not met, 2 bad usage or input, 130 interrupted."""
    from assay.cli.app import app
    from assay.runtime.errors import AssayError

    try:
        app(standalone_mode=True)
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        _exit(2)
    except KeyboardInterrupt:
        print("assay: interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        _exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(
            f"assay:{where}: {error.strerror or error}; expected a readable input and a writable output",
            file=sys.stderr,
        )
        _exit(2)
    _exit(0)


def _exit(code: int) -> NoReturn:
    sys.exit(code)
