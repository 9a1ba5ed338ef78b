"""Fonts and pictures of words, on the font that Pillow carries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from assay.language import WordRenderer
from assay.language.fonts import font_path, load_font
from assay.runtime.errors import InputError

PILLOW = WordRenderer(font="pillow")


def test_picture_is_that_of_the_released_renderer() -> None:
    found = PILLOW.render("w0rd", "word")
    font = load_font("pillow", 32)
    picture = Image.new("RGB", (found.shape[2], 40), color="white")
    ImageDraw.Draw(picture).text((10, 0), "w0rd  word", font=font, fill="black")
    assert found.shape[:2] == (3, 40)
    assert abs(found.shape[2] - 20 - font.getlength("w0rd  word")) < 1
    assert np.array_equal((found * 255).byte().permute(1, 2, 0).numpy(), np.array(picture))


def test_ink_is_black_on_white_and_stays_inside() -> None:
    found = PILLOW.render("Mj")
    assert found.min() == 0
    assert found.max() == 1
    assert (found[:, :, -10:] == 1).all()
    assert WordRenderer(font="pillow", size=16).render("Mj").shape[1] == 24


def test_cells_hold_the_glyphs_in_order_and_end_empty() -> None:
    small = WordRenderer(font="pillow", size=12)
    cells = small.cells(["ab", "b"], 3)
    a, b = small.glyphs(["a", "b"])
    assert cells.shape == (2, 12, 36)
    assert torch.equal(cells[0], torch.cat((a, b, torch.zeros(12, 12)), 1))
    assert torch.equal(cells[1], torch.cat((b, torch.zeros(12, 24)), 1))
    assert torch.equal(small.cells(["b"], 3)[0], cells[1])


def test_glyphs_are_centred_and_share_a_base_line() -> None:
    glyphs = PILLOW.glyphs(["o", "l", "p"])
    columns, rows = glyphs.amax(1) > 0.5, glyphs.amax(2) > 0.5
    middle = torch.arange(32.0)
    assert all(abs(float(middle[c].mean()) - 15.5) <= 1.5 for c in columns)
    lowest = [int(r.nonzero().max()) for r in rows]
    assert abs(lowest[0] - lowest[1]) <= 1  # o and l stand on the line
    assert lowest[2] > lowest[0] + 3  # p goes below it


@pytest.mark.parametrize("char", ["\u0301", " ", "\u200b", "\ue000", "\u05d0", "\u0627", "\ud7ff"])
def test_marks_blanks_and_boxes_are_not_drawn(char: str) -> None:
    assert not PILLOW.draws(char)
    assert PILLOW.draws("a")


def test_box_of_a_missing_glyph_is_no_glyph() -> None:
    assert not PILLOW.draws("\u0436")  # Cyrillic is not in Pillow's own font
    if font_path("dejavu") is not None:
        assert WordRenderer(font="dejavu").draws("\u0436")
        assert not WordRenderer(font="dejavu").draws("\u4e00")


def test_there_is_always_a_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.language.fonts.font_path", lambda name: None)
    load_font.cache_clear()
    try:
        assert load_font(None, 20).getname() == load_font("pillow", 20).getname()
        with pytest.raises(InputError, match="not found"):
            load_font("unifont", 20)
    finally:
        load_font.cache_clear()


def test_bad_input(tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    for bad in (
        lambda: PILLOW.render(""),
        lambda: PILLOW.cells([], 3),
        lambda: PILLOW.cells(["", "a"], 3),
        lambda: PILLOW.cells(["abcd"], 3),
        lambda: PILLOW.glyphs([]),
        lambda: PILLOW.glyphs(["ab"]),
        lambda: WordRenderer(size=0),
        lambda: WordRenderer(font=str(broken)),
        lambda: WordRenderer(font="no such font"),
    ):
        with pytest.raises(InputError):
            bad()
