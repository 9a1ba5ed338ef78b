"""Reading TOML files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from assay.runtime.errors import InputError

MOST = 8 << 20
# The reader needs the square of a dotted key's length in time and memory; nobody's key has 64 parts.
_DEEP = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """The table in ``path``; InputError, opening with ``where``, when it cannot be read or is larger than 8 MiB."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"{where}: {getattr(error, 'strerror', error)}; expected a TOML file") from error
    if len(raw) > MOST:
        raise InputError(f"{where}: larger than {MOST >> 20} MiB; expected a TOML file")
    try:
        text = raw.decode("utf-8")
        if _DEEP.search(text):
            raise ValueError("a key of more than 64 parts")
        return tomllib.loads(text)
    except RecursionError as error:
        raise InputError(f"{where}: not valid TOML (nested too deeply)") from error
    except ValueError as error:  # syntax, encoding, a number of thousands of digits
        raise InputError(f"{where}: not valid TOML ({error})") from error
