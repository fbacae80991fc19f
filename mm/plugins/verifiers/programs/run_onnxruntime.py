"""An ONNX decoder with a KV cache in onnxruntime: `python run_onnxruntime.py JOB OUT`. Imports no mm.

A file alone has no tokenizer beside it: prompts are then not told.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Chat = dict[str, Any]


class Decoder:
    """The model with the cache of one document."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.empty = {
            one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
            for one in self.session.get_inputs()
            if one.name.startswith("past_key_values.")
        }

    def read(self, ids: list[int], past: dict[str, Any] | None = None, length: int = 0) -> tuple[Any, dict[str, Any]]:
        """The logits (tokens, vocabulary) after further ids, and the cache; `length` tokens are in `past`."""
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, length + len(ids)), np.int64),
            "position_ids": np.arange(length, length + len(ids), dtype=np.int64)[None],
            **(past or self.empty),
        }
        found = dict(zip(self.outputs, self.session.run(None, inputs), strict=True))
        logits = found.pop("logits")[0]
        return logits, {name.replace("present.", "past_key_values."): value for name, value in found.items()}


def greedy(decoder: Decoder, chat: Chat, job: dict[str, Any]) -> tuple[list[int], str]:
    """(ids, reason to stop) of the greedy reply to our prompt, token by token with the cache."""
    logits, past = decoder.read(chat["ids"])
    reply = []
    while True:
        reply.append(int(logits[-1].argmax()))
        if reply[-1] in job["stop"]:
            return reply, "stop"
        if len(reply) == job["count"]:
            return reply, "length"
        logits, past = decoder.read(reply[-1:], past, len(chat["ids"]) + len(reply) - 1)


def logprobs(decoder: Decoder, chat: Chat) -> list[list[float]]:
    """The log-probabilities of the ids that are asked for, at each position of our reply."""
    logits, _ = decoder.read(chat["ids"] + chat["reply"])
    values = logits[len(chat["ids"]) - 1 : -1].astype(np.float64)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    return [values[place, asked].tolist() for place, asked in enumerate(chat["asked"])]


def prompt(folder: Path) -> Callable[[Chat], tuple[str | None, list[int] | None]]:
    """A function from a chat to (text, ids), by the tokenizer in the folder if there is one."""
    if not (folder / "tokenizer.json").exists():
        return lambda chat: (None, None)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def render(chat: Chat) -> tuple[str, list[int]]:
        switches = {} if chat["thinking"] is None else {"enable_thinking": chat["thinking"], "open_thinking": chat["thinking"]}
        options = {"tools": chat["tools"] or None, "add_generation_prompt": True, **switches}
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, **options)
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]

    return render


def main(job_path: str, out_path: str) -> None:
    """Read the job, and write the results."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    path = Path(job["model"])
    decoder = Decoder(path / "model.onnx" if path.is_dir() else path)
    render = prompt(path if path.is_dir() else Path("/nonexistent"))
    results = []
    for number, chat in enumerate(job["chats"], 1):
        text, ids = render(chat)
        reply, stop = greedy(decoder, chat, job)
        results.append({"text": text, "ids": ids, "reply": reply, "stop": stop, "logprobs": logprobs(decoder, chat)})
        print("done", number, flush=True)
    out = {"engine": f"onnxruntime {version('onnxruntime')}", "chats": results}
    Path(out_path).write_text(json.dumps(out), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
