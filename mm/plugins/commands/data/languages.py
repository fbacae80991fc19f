"""The language of a text, by a rule about its characters that can be checked by eye.

A text is `code` if at least five of its characters, and at least one in fifteen of those that are not white space, are among
`{}[]();=_\\|&`. Otherwise the most frequent kind of character decides: Han characters (zh), ASCII letters (en), or other
letters (other). A character of Chinese, Japanese or Korean counts three times, as it carries about as much as three letters.
So every language in Latin letters counts as en, and Japanese counts as other if its kana outweigh its Han characters.
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
    """One of `LANGUAGES`. A text without letters is `other`."""
    signs = _count(_SIGNS, text)
    if signs >= 5 and 15 * signs >= len("".join(text.split())):
        return "code"
    han, latin, kana = (_count(pattern, text) for pattern in (_HAN, _LATIN, _KANA_HANGUL))
    rest = _count(_LETTER, text) - han - latin - kana
    weights = {"zh": 3 * han, "en": latin, "other": rest + 3 * kana}
    language = max(weights, key=lambda name: weights[name])
    return language if weights[language] else "other"


def _count(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))
