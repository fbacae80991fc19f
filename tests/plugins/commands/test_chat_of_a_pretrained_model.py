"""`mm chat` with a model that was only pretrained."""

from __future__ import annotations

from mm.testing import tiny_rows
from mm.testing.pytest_plugin import CommandLine, Train


def test_a_model_that_was_only_pretrained_is_told_apart(mm_train: Train, mm_cli: CommandLine) -> None:
    mm_train("pretrain", run="base", max_steps=1)
    mm_train("pretrain", run="more", from_="base", max_steps=1)
    mm_train("sft", run="tuned", from_="base", max_steps=1, rows=tiny_rows("chat"))
    mm_train("pretrain", run="texts again", from_="tuned", max_steps=1)
    told = {name: mm_cli("chat", name, "--max-new-tokens", 1, stdin="Hello\nHello\n").err for name in ("base", "more", "tuned")}
    line = "more was only pretrained: it continues text and has not learned to answer. mm generate more 'Once upon a time' --raw"
    assert told["more"].count(line) == 1 and "mm train --algo sft --from more teaches it." in told["more"]
    assert "only pretrained" in told["base"] and "only pretrained" not in told["tuned"]
    assert "only pretrained" not in mm_cli("chat", "texts again", stdin="").err
