"""Stop texts in a stream: any split of the stream gives the same text, and no more is held back than must be."""

from __future__ import annotations

from hypothesis import given, strategies as st

from mm.runtime.text.stop_texts import StopTexts

TEXTS = st.text("abc", max_size=14)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def reference(text: str, stops: list[str]) -> str:
    """The text before the stop text that is complete first, by trying every beginning of the text."""
    for end in range(len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, complete))]
    return text


@given(pieces=st.lists(TEXTS, max_size=6), stops=STOPS)
def test_any_split_gives_the_text_before_the_first_stop_text(pieces: list[str], stops: list[str]) -> None:
    expected = reference("".join(pieces), stops)
    for split in (pieces, list("".join(pieces)), ["".join(pieces)]):
        found = StopTexts(stops)
        shown = "".join([*(found.push(piece) for piece in split), found.finish()])
        assert shown == expected
        assert found.found == (expected != "".join(pieces))


@given(pieces=st.lists(TEXTS, max_size=6), stops=STOPS)
def test_only_the_beginning_of_a_stop_text_is_held_back(pieces: list[str], stops: list[str]) -> None:
    found, read, shown = StopTexts(stops), "", ""
    for piece in pieces:
        shown, read = shown + found.push(piece), read + piece
        if found.found:
            break
        held = read.removeprefix(shown)
        assert read.startswith(shown)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
