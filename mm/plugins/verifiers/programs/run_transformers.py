"""A folder in a Hugging Face layout in transformers: `python run_transformers.py JOB OUT`. Imports no mm."""

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Chat = dict[str, Any]


def prompt(tokenizer: Any, chat: Chat) -> tuple[str, list[int]]:
    """The rendered text and its ids, by the folder's own template and tokenizer."""
    switches = {} if chat["thinking"] is None else {"enable_thinking": chat["thinking"], "open_thinking": chat["thinking"]}
    options = {"tools": chat["tools"] or None, "add_generation_prompt": True, **switches}
    text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, **options)
    encoded = tokenizer.apply_chat_template(chat["messages"], tokenize=True, return_dict=True, **options)
    return text, list(encoded["input_ids"])


def greedy(model: Any, chat: Chat, job: dict[str, Any]) -> tuple[list[int], str]:
    """(ids, reason to stop) of the greedy reply to our prompt. Nothing of the folder's generation settings applies."""
    ids = torch.tensor([chat["ids"]])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_p=None, top_k=None,
        max_new_tokens=job["count"], eos_token_id=job["stop"], pad_token_id=job["stop"][0], repetition_penalty=1.0,
    )  # fmt: skip
    reply = found[0, ids.shape[1] :].tolist()
    return reply, "stop" if reply and reply[-1] in job["stop"] else "length"


def logprobs(model: Any, chat: Chat) -> list[list[float]]:
    """The log-probabilities of the ids that are asked for, at each position of our reply."""
    ids = chat["ids"] + chat["reply"]
    values = model(torch.tensor([ids])).logits[0, len(chat["ids"]) - 1 : -1].double().log_softmax(-1)
    return [values[place][torch.tensor(asked)].tolist() for place, asked in enumerate(chat["asked"])]


def main(job_path: str, out_path: str) -> None:
    """Read the job, and write the results."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    # not cast afterwards: the rotary frequencies would have been rounded to the type of the folder
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.eval()
    results = []
    for number, chat in enumerate(job["chats"], 1):
        text, ids = prompt(tokenizer, chat)
        reply, stop = greedy(model, chat, job)
        results.append({"text": text, "ids": ids, "reply": reply, "stop": stop, "logprobs": logprobs(model, chat)})
        print("done", number, flush=True)
    engine = f"transformers {version('transformers')}, torch {version('torch')}"
    with open(out_path, "w", encoding="utf-8") as file:
        json.dump({"engine": engine, "chats": results}, file)


if __name__ == "__main__":
    with torch.inference_mode():
        main(*sys.argv[1:])
