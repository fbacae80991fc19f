"""Texts that end a completion, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Looks for the first of some texts in a stream.

    The first is the one that is complete first, so the result does not depend on how the stream is split; of those that end at
    the same character it is the longest. Characters that may be the beginning of a stop text are held back until it is known.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts` are not empty."""
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of the stream that is certain to stand before a stop text, after this piece of it. Nothing follows once one
        was found."""
        if self.found or not self._texts:
            return "" if self.found else text
        text = self._held + text
        starts = {stop: text.find(stop) for stop in self._texts}
        if ends := [(start + len(stop), start) for stop, start in starts.items() if start >= 0]:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        certain = len(text) - max(_overlap(text, stop) for stop in self._texts)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The characters that were held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next(size for size in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:size]))
