"""The Go templates of a Modelfile render what the chat templates do, in Go's own text/template (`apt-get install golang-go`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest
from chats import as_ollama, chat

from mm.converters.ollama.templates import go_template
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE, Tokenizer

pytestmark = pytest.mark.engines
PROGRAM = Path(__file__).with_name("ollama_template.go")
CHATS = 400
# folders with MiniMind's tokenizers of both generations, which are not part of this project
MINIMIND = os.environ.get("MM_MINIMIND_TOKENIZERS", "")


def in_go(template: str, chats: list[dict[str, Any]], folder: Path) -> list[str]:
    if not shutil.which("go"):
        pytest.skip("Go is not installed: apt-get install golang-go")
    (folder / "template").write_text(template, encoding="utf-8", newline="\n")
    (folder / "chats.json").write_text(json.dumps(as_ollama(chats)), encoding="utf-8")
    command = ["go", "run", str(PROGRAM), str(folder / "template"), str(folder / "chats.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def in_jinja(tokenizer: Tokenizer, one: dict[str, Any]) -> str:
    switches = {} if one["thinking"] is None else {"enable_thinking": one["thinking"], "open_thinking": one["thinking"]}
    return tokenizer.render(one["messages"], one["tools"] or None, add_generation_prompt=True, **switches)


def check(tokenizer: Tokenizer, folder: Path) -> None:
    random = Random(0)
    chats = [chat(random) for _ in range(CHATS)]
    for one in chats, [c for c in chats if c["tools"]], [c for c in chats if len(c["messages"]) > 3]:
        assert len(one) >= 100
    rendered = in_go(go_template(tokenizer.template), chats, folder)
    for one, text in zip(chats, rendered, strict=True):
        assert text == in_jinja(tokenizer, one), one


def test_ours_is_rendered_alike(tmp_path: Path) -> None:
    check(Tokenizer.load().with_template(DEFAULT_TEMPLATE.read_text(encoding="utf-8")), tmp_path)


@pytest.mark.skipif(not MINIMIND, reason="MM_MINIMIND_TOKENIZERS names no folders (separated by :) with MiniMind's tokenizers")
@pytest.mark.parametrize("index", [0, 1])
def test_minimind_is_rendered_alike(index: int, tmp_path: Path) -> None:
    check(Tokenizer.load(MINIMIND.split(":")[index]), tmp_path)
