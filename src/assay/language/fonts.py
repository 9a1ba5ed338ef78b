"""Finding a font: GNU Unifont, DejaVu Sans, or the one that Pillow carries."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path

from PIL import ImageFont

from assay.runtime.errors import InputError

# A noncharacter: no font has a glyph for it, so that what is drawn is the font's box for missing glyphs.
MISSING = "\U0010ffff"
BEST = ("unifont", "dejavu", "pillow")


def _candidates(name: str) -> list[Path]:
    shared = Path("/usr/share/fonts")
    if name == "unifont":
        homes = (shared / "opentype/unifont", shared / "truetype/unifont", shared / "unifont", shared / "misc")
        return [home / f"unifont.{suffix}" for home in homes for suffix in ("otf", "ttf")]
    found = importlib.util.find_spec("matplotlib")  # its copy comes first: it is the same on every machine
    bundled = [Path(p) / "mpl-data/fonts/ttf" for p in (found.submodule_search_locations or [])] if found else []
    return [home / "DejaVuSans.ttf" for home in (*bundled, shared / "truetype/dejavu", shared / "dejavu")]


def font_path(name: str) -> Path | None:
    """Where "unifont" or "dejavu" lies, or None; a path names itself."""
    if name not in ("unifont", "dejavu"):
        return Path(name) if Path(name).is_file() else None
    return next((path for path in _candidates(name) if path.is_file()), None)


@cache
def load_font(name: str | None, size: int) -> ImageFont.FreeTypeFont:
    """The font at ``size`` pixels: "unifont", "dejavu", "pillow", a path, or None for the first of the three there is.

    Pillow's own is always there, with letters, digits and punctuation of ASCII alone. Characters are laid out one
    after the other, without shaping, so that pictures do not depend on what Pillow was built with. Raises InputError
    where the font is not found or is none, and for size < 1.
    """
    if size < 1:
        raise InputError(f"font: size={size}; expected at least 1 pixel")
    if name is None:
        name = next(n for n in BEST if n == "pillow" or font_path(n) is not None)
    if name == "pillow":
        drawn = ImageFont.load_default(size)
        if not isinstance(drawn, ImageFont.FreeTypeFont):
            raise InputError("font 'pillow': this Pillow has no FreeType; expected one that draws outline fonts")
        return drawn.font_variant(layout_engine=ImageFont.Layout.BASIC)
    path = font_path(name)
    if path is None:
        raise InputError(f"font {name!r}: not found; expected {', '.join(BEST)}, or the path of a font")
    try:
        return ImageFont.truetype(io.BytesIO(path.read_bytes()), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(f"font {name!r}: {path} cannot be read ({error}); expected a TrueType font") from error
