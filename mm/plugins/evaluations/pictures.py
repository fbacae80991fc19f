"""Plots without a display, in fonts that have the glyphs of their texts."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from mm.core.say import on_stderr
from mm.runtime.models.storage import name_errors


def pyplot() -> Any:
    """matplotlib's pyplot, set up to write files and open no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, out: Path) -> Path:
    """Write a matplotlib figure to a file, which is complete or stays as it was, and close it. Returns `out`.

    matplotlib's own font has no Chinese characters, so missing glyphs are taken from other installed fonts. Characters that
    no font has are reported once on stderr.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families, missing = fonts_for("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_family(families)
    if missing:
        on_stderr(f"{out}: no installed font has the characters {missing}; install one that has, such as Noto Sans CJK")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        with name_errors(temporary, out), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            figure.tight_layout()
            figure.savefig(temporary, dpi=120)
            os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    pyplot().close(figure)
    return out


def fonts_for(text: str) -> tuple[list[str], str]:
    """The font families to try in turn for a text, matplotlib's own first, and the characters that none of them has."""
    from matplotlib import font_manager

    own = font_manager.findfont("DejaVu Sans")
    families, missing = ["DejaVu Sans"], {ord(character) for character in text if not character.isspace()} - _glyphs(own)
    # regular fonts first: a family is named, and its name does not say which of its styles and weights will be used
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda e: (e.style != "normal", str(e.weight) != "400", e.name)):
        if not missing:
            break
        # the font "Last Resort" has a placeholder box for every character
        if not entry.name.startswith("Last Resort") and (supplied := missing & _glyphs(entry.fname)):
            families.append(entry.name)
            missing -= supplied
    return families, "".join(map(chr, sorted(missing)))


def _glyphs(path: str) -> set[int]:
    """The code points that a font file has glyphs for."""
    from matplotlib import font_manager

    try:
        return set(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a bitmap font, or a file that was deleted
        return set()
