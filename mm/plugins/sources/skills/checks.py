"""The checks of completions against evaluation items, and the confidence interval of the share that passes."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mm.runtime.text.replies import answer_text, split_calls, without_thinking

# The opening and the closing of a polite reply.
MANNERS = {"zh": ("没问题！", "希望能帮到你！"), "en": ("Of course!", "I hope this helps!")}
NORMAL_95 = 1.959963984540054


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has a key twice")
    return values


def _reject_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def parse_call(text: str) -> object:
    """The JSON value of a reply that is one tool call and nothing else; None for any other reply.

    Strict: no duplicate keys, no NaN, and only white space around the tags.
    """
    rest, calls = split_calls(text)
    if rest.strip() or len(calls) != 1 or not calls[0].closed:
        return None
    try:
        return json.loads(calls[0].body, object_pairs_hook=_unique_keys, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return None


def is_polite(text: str, language: str) -> bool:
    """True if the reply has the polite opening and closing of the question's language, and text between them."""
    opening, closing = MANNERS[language]
    return len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)


def starts(text: str, expected: str) -> bool:
    """True if the continuation starts with the expected words; the last word must not be only a part of a longer one."""
    after = text[len(expected) :][:1]
    return text.startswith(expected) and not (expected[-1].isascii() and after.isascii() and after.isalnum())


def contains(text: str, values: list[str]) -> bool:
    """True if the text has no tool call, and contains each value at least as often as `values` does. Parts of longer
    numbers or words do not count."""
    edge = "[0-9A-Za-z]"
    counts = {value: len(re.findall(f"(?<!{edge}){re.escape(value)}(?!{edge})", text)) for value in values}
    return "<tool_call>" not in text and all(counts[value] >= values.count(value) for value in values)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "equals": lambda text, expected: text == expected,
    "answer": lambda text, expected: answer_text(text) == expected and text.endswith("</answer>"),
    "call": lambda text, expected: parse_call(text) == expected,
    "polite": is_polite,
    "starts": starts,
    "contains": contains,
}


def score(item: Mapping[str, Any], completion: str) -> bool:
    """True if the completion passes the item's check. It may have a think block, but no special tokens.

    An item has one check. Its kind is one of:

    - equals: the whole reply;
    - answer: the text between the answer tags, with which the reply ends;
    - call: name and arguments of the tool call that is the whole reply;
    - polite: the manner of the reply;
    - starts: the start of the continuation of a raw text;
    - contains: the values that the final reply of an episode must contain.

    Raises KeyError for another kind.
    """
    ((kind, expected),) = item["check"].items()
    return CHECKS[kind](without_thinking(completion), expected)


def reference(item: Mapping[str, Any]) -> str:
    """The shortest natural completion that passes the item's check, with tool calls as a chat template writes them."""
    ((kind, expected),) = item["check"].items()
    if kind == "answer":
        return f"<answer>{expected}</answer>"
    if kind == "call":
        return f"<tool_call>\n{json.dumps(expected, ensure_ascii=False)}\n</tool_call>"
    if kind == "polite":
        opening, closing = MANNERS[expected]
        return f"{opening} ... {closing}"
    return " ".join(expected) if kind == "contains" else str(expected)


def interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval of the share `successes` / `n`: Wilson's score interval; (0, 1) if n is 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212. It stays inside [0, 1] and
    is valid for 0 and n successes, where the usual interval has no width. Raises ValueError unless 0 <= successes <= n.
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
