"""Reading of the texts in `data/`."""

import json
from collections.abc import Iterator
from importlib.resources import files

LANGUAGES = ("zh", "en")


def rows(language: str | None = None) -> Iterator[dict[str, str]]:
    """`{"text"}` rows of one language, or of Chinese and then English, in the order of the books.

    `data/NOTICE.md` has their origin and licence. Raises ValueError for another language.
    """
    if language is not None and language not in LANGUAGES:
        raise ValueError(f"classics has {' and '.join(LANGUAGES)}, not {language!r}")
    return _read(LANGUAGES if language is None else (language,))


def _read(languages: tuple[str, ...]) -> Iterator[dict[str, str]]:
    for name in languages:
        with (files(__package__) / "data" / f"classics-{name}.jsonl").open(encoding="utf-8") as file:
            yield from map(json.loads, file)
