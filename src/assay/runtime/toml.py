"""Reading TOML files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from assay.runtime.errors import InputError


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """The table in ``path``; InputError, opening with ``where``, when it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}; expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not valid TOML ({error})") from error
