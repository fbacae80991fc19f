"""Which language a text is in, by a rule about its characters that anybody can check by eye.

`code` when of the characters that are no spaces at least one in fifteen, and at least five, are among `{}[]();=_\\|&`.
Otherwise whichever is most: Han characters (zh), ASCII letters (en), other letters (other). Characters of Chinese,
Japanese and Korean count three times, as one of them says about as much as three letters. So any language in Latin
letters counts as en, and Japanese as other where its kana outweigh its Han characters.
"""

from __future__ import annotations

import re

LANGUAGES = ("zh", "en", "code", "other")

_SIGNS = re.compile(r"[{}\[\]();=_\\|&]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_LATIN = re.compile("[A-Za-z]")
_KANA_HANGUL = re.compile("[\u3040-\u30ff\uac00-\ud7af]")
_LETTER = re.compile(r"[^\W\d_]")


def language_of(text: str) -> str:
    """One of `LANGUAGES`; `other` also for a text without letters."""
    signs = _count(_SIGNS, text)
    if signs >= 5 and 15 * signs >= len("".join(text.split())):
        return "code"
    han, latin, kana = (_count(pattern, text) for pattern in (_HAN, _LATIN, _KANA_HANGUL))
    rest = _count(_LETTER, text) - han - latin - kana
    weights = {"zh": 3 * han, "en": latin, "other": rest + 3 * kana}
    found = max(weights, key=lambda name: weights[name])
    return found if weights[found] else "other"


def _count(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))
