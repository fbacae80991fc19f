"""Rows of every kind to train with, by the kind's name."""

from __future__ import annotations

from typing import Any

import drawing

CHATS = [
    [
        {"role": "user", "content": f"say {n}"},
        {"role": "assistant", "content": f"<think>\n{n}\n</think>\n" + f"number {n} " * (1 + n % 4)},
    ]
    for n in range(9)
]  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"messages": chat} for chat in CHATS],
    "preference": [{"chosen": c, "rejected": [c[0], {"role": "assistant", "content": f"no {i}"}]} for i, c in enumerate(CHATS)],
    "unpaired": [{"prompt": c[0]["content"], "completion": c[1]["content"], "label": i % 3 > 0} for i, c in enumerate(CHATS)],
}
DATA: dict[str, list[dict[str, Any]]] = {
    **ROWS, "text": [{"text": f"number {n} " * (1 + n % 5)} for n in range(9)], "prompt": drawing.PROMPTS,
    "episode": drawing.EPISODES,
}  # fmt: skip
