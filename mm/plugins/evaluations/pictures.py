"""Pictures without a display, and with letters that their fonts have."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mm.core.say import on_stderr


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, out: Path) -> Path:
    """Write a figure and close it. Returns `out`.

    matplotlib's own font has no Chinese letters: other installed fonts give what it lacks. What none has is said once.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families, missing = fonts_for("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_family(families)
    if missing:
        on_stderr(f"{out}: no installed font has {missing}; with one, such as Noto Sans CJK, they will be drawn")
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.tight_layout()
        figure.savefig(out, dpi=120)
    pyplot().close(figure)
    return out


def fonts_for(text: str) -> tuple[list[str], str]:
    """Families to be tried in turn, matplotlib's first, and the letters that none has."""
    from matplotlib import font_manager

    own = font_manager.findfont("DejaVu Sans")
    families, missing = ["DejaVu Sans"], {ord(letter) for letter in text if not letter.isspace()} - _letters(own)
    # the plainest weight first: a family's name does not say which of its fonts is drawn
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda e: (e.style != "normal", str(e.weight) != "400", e.name)):
        if not missing:
            break
        # that font draws a box for every letter there is
        if not entry.name.startswith("Last Resort") and (found := missing & _letters(entry.fname)):
            families.append(entry.name)
            missing -= found
    return families, "".join(map(chr, sorted(missing)))


def _letters(path: str) -> set[int]:
    from matplotlib import font_manager

    try:
        return set(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # pictures of letters, and fonts that are gone
        return set()
