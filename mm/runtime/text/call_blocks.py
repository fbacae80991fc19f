"""Where tool calls begin and end in a text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

CALL, CALL_END = "<tool_call>", "</tool_call>"
# tags, quotes and line breaks, these two also with the backslash that escapes them inside of a string, and escaped backslashes
_TOKENS = re.compile(rf'{CALL}|{CALL_END}|\\[\\"\n]|["\n]')
_SPECIAL, _TAG = re.compile(r'[<"\\\n]'), re.compile("<")
_GOES_ON, _UNPAIRED = -1, -2


@attrs.frozen
class CallBlock:
    """A tool call as it was written: the text after the opening tag, and whether a closing tag follows."""

    body: str
    closed: bool = True

    def __str__(self) -> str:
        """The whole text, with its tags."""
        return f"{CALL}{self.body}{CALL_END if self.closed else ''}"


class CallSplitter:
    """Splits a stream into plain text and tool calls.

    A call ends at the first closing tag outside of JSON strings. A string ends at its quote and does not go beyond its line; if
    one does not end, or no closing tag is outside, the quotes mean nothing and the call ends at its first closing tag. A call
    without a closing tag goes to the end of the text. The result does not depend on how the stream is cut, and the time is
    linear: the ends of calls that begin inside of another one, which count if the quotes of that one mean nothing, are found in
    one walk through each line.
    """

    def __init__(self) -> None:
        self._carry = ""  # may be the beginning of a token
        self._reading = False
        self._tokens: list[str] = []  # of the call that is being read
        self._in_string = self._broken = False  # broken: ends at the first closing tag, which is still to come
        self._line = 0  # the index of the first token of the current line
        self._ends: dict[int, int] = {}  # the opening tags among the tokens whose closing tag is known
        self._going: set[int] = set()  # those that may still go on behind the last line break; all others have unpaired quotes

    def push(self, text: str) -> list[str | CallBlock]:
        """The texts and calls that are complete with this piece, in their order. No text is empty."""
        if not self._carry and not (_SPECIAL if self._reading else _TAG).search(text):  # most pieces
            self._tokens += [text] if self._reading else []
            return [text] if text and not self._reading else []
        found, at, text = list[str | CallBlock](), 0, self._carry + text
        backslashes = len(text) - len(text.rstrip("\\"))
        end = len(text) - (backslashes % 2 or unfinished(text, CALL, CALL_END))
        while at < end:
            if self._reading:
                for token, place in _tokens(text, at, end):
                    found += self._take(token)
                    at = place
                    if not self._reading:
                        break
            else:
                tag = text.find(CALL, at, end)
                found.append(text[at : tag if tag >= 0 else end])
                at = tag + len(CALL) if tag >= 0 else end
                self._reading = tag >= 0
        self._carry = text[end:]
        return [one for one in found if one != ""]

    def finish(self) -> list[str | CallBlock]:
        """The rest, at the end of the stream."""
        found = list[str | CallBlock]()
        if self._reading:
            self._tokens.append(self._carry)
            self._mark_line()
            self._going.clear()
            found = self._read_again()
        if self._reading:
            found.append(CallBlock("".join(self._tokens), closed=False))
        elif not found:
            found.append(self._carry)
        self._carry = ""
        self._leave()
        return [one for one in found if one != ""]

    def held(self) -> str:
        """The text that was pushed and not returned yet."""
        return (CALL if self._reading else "") + "".join(self._tokens) + self._carry

    def _take(self, token: str) -> list[str | CallBlock]:
        if token == CALL_END and not self._in_string:
            block = CallBlock("".join(self._tokens))
            self._leave()
            return [block]
        self._tokens.append(token)
        if self._broken:
            return []
        if token == "\n":
            self._mark_line()
            if self._in_string:
                return self._read_again()
        elif token == '"':
            self._in_string = not self._in_string
        elif token == r"\"":
            self._in_string = True
        return []

    def _mark_line(self) -> None:
        """Find the closing tag of each opening one in the line that ends here, as if a call began there."""
        outside, inside = _GOES_ON, _UNPAIRED  # how a search ends that is outside of strings, or in one, at this place
        self._going.clear()
        for index in range(len(self._tokens) - 1, self._line - 1, -1):
            token = self._tokens[index]
            if token == '"':
                outside, inside = inside, outside
            elif token == r"\"":
                outside = inside
            elif token == CALL_END:
                outside = index
            elif token == CALL and outside == _GOES_ON:
                self._going.add(index)
            elif token == CALL and outside >= 0:
                self._ends[index] = outside
        self._line = len(self._tokens)

    def _read_again(self) -> list[str | CallBlock]:
        """The calls and texts among the tokens, since the quotes of the call that was read do not pair. The last may go on."""
        found, tokens, begin = list[str | CallBlock](), self._tokens, -1
        while begin not in self._going:
            end = self._ends.get(begin) or _index(tokens, CALL_END, begin + 1)
            if end < 0:
                break
            following = _index(tokens, CALL, end + 1)
            found.append(CallBlock("".join(tokens[begin + 1 : end])))
            found.append("".join(tokens[end + 1 : following if following >= 0 else None]))
            if following < 0:
                self._leave()
                return found
            begin = following
        self._broken, self._in_string = begin not in self._going, False
        self._tokens = tokens[begin + 1 :]
        self._line = len(self._tokens)
        self._ends = {at - begin - 1: end - begin - 1 for at, end in self._ends.items() if at > begin}
        self._going = {at - begin - 1 for at in self._going if at > begin}
        return found

    def _leave(self) -> None:
        self._reading = self._in_string = self._broken = False
        self._tokens, self._ends, self._going, self._line = [], {}, set(), 0


def _tokens(text: str, start: int, end: int) -> Iterator[tuple[str, int]]:
    """The tokens of a part of `text`, each with the place where it ends."""
    for match in _TOKENS.finditer(text, start, end):
        if match.start() > start:
            yield text[start : match.start()], match.start()
        yield match[0], (start := match.end())
    if start < end:
        yield text[start:end], end


def _index(tokens: list[str], token: str, start: int) -> int:
    """The index of the first such token, or -1."""
    try:
        return tokens.index(token, start)
    except ValueError:
        return -1


def unfinished(text: str, *tags: str) -> int:
    """The number of characters at the end of `text` that may be the beginning of one of the tags. Only their first character
    is a <."""
    if (at := text.rfind("<", max(0, len(text) - max(map(len, tags)) + 1))) < 0:
        return 0
    end = text[at:]
    return len(end) if any(tag != end and tag.startswith(end) for tag in tags) else 0
