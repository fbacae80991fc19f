"""Does a completion answer an item, and how sure is the share of those that do?"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mm.runtime.text.replies import answer_text, split_calls, without_thinking

# How a polite reply begins and ends.
MANNERS = {"zh": ("没问题！", "希望能帮到你！"), "en": ("Of course!", "I hope this helps!")}
NORMAL_95 = 1.959963984540054


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def parse_call(text: str) -> object:
    """The JSON of a reply that is one tool call and nothing else; None for any other reply.

    Strict: no key twice, no NaN, no text around the tags but whitespace.
    """
    around, calls = split_calls(text)
    if around.strip() or len(calls) != 1 or not calls[0].closed:
        return None
    try:
        return json.loads(calls[0].body, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def is_polite(text: str, language: str) -> bool:
    """Opens and closes in the polite manner of the language in which the question was put."""
    opening, closing = MANNERS[language]
    return len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)


def starts(text: str, expected: str) -> bool:
    """The continuation begins with the expected words, not merely with their letters."""
    after = text[len(expected) :][:1]
    return text.startswith(expected) and not (expected[-1].isascii() and after.isascii() and after.isalnum())


def contains(text: str, values: list[str]) -> bool:
    """Every value is there as often as it is wanted, and not as a part of a longer number or word."""
    edge = "[0-9A-Za-z]"
    found = {value: len(re.findall(f"(?<!{edge}){re.escape(value)}(?!{edge})", text)) for value in values}
    return "<tool_call>" not in text and all(found[value] >= values.count(value) for value in values)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "equals": lambda text, wanted: text == wanted,
    "answer": lambda text, wanted: answer_text(text) == wanted and text.endswith("</answer>"),
    "call": lambda text, wanted: parse_call(text) == wanted,
    "polite": is_polite,
    "starts": starts,
    "contains": contains,
}


def score(item: Mapping[str, Any], completion: str) -> bool:
    """Whether the completion passes the item's one check. Special tokens must be gone from it; a think block may stay.

    equals: the whole reply. answer: what stands in the answer tags, which end it. call: name and arguments of the
    tool call that is the whole reply. polite: the manner. starts: how a raw text goes on. contains: all values
    that the final reply of an episode must give. Raises KeyError for another kind of check.
    """
    ((kind, wanted),) = item["check"].items()
    return CHECKS[kind](without_thinking(completion), wanted)


def reference(item: Mapping[str, Any]) -> str:
    """The shortest natural completion that passes the item's check, as a template would write it."""
    ((kind, wanted),) = item["check"].items()
    if kind == "answer":
        return f"<answer>{wanted}</answer>"
    if kind == "call":
        return f"<tool_call>\n{json.dumps(wanted, ensure_ascii=False)}\n</tool_call>"
    if kind == "polite":
        opening, closing = MANNERS[wanted]
        return f"{opening} ... {closing}"
    return " ".join(wanted) if kind == "contains" else str(wanted)


def interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share by Wilson's score; (0, 1) where nothing was counted.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212. It stays inside [0, 1] and
    is sound at 0 and at n, where the usual interval has no width.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, NORMAL_95**2
    middle = share + z2 / (2 * n)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)
