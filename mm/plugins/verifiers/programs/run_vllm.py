"""Runs a job in vLLM, in this process: PYTHON run_vllm.py JOB.json OUT.json, with the Python of an environment that has vLLM."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import vllm_settings


def main(job: dict[str, Any]) -> dict[str, Any]:
    """The results of the job."""
    from vllm import LLM

    config = vllm_settings.read_config(job)
    asked = vllm_settings.asked_count(job) + vllm_settings.SPARE
    dtype = vllm_settings.dtype_of(config)
    length = vllm_settings.length_of(job, config)
    llm = LLM(
        job["model"], dtype=dtype, enforce_eager=True, max_model_len=length, max_num_batched_tokens=max(length, 2048),
        max_num_seqs=vllm_settings.SEQUENCES, max_logprobs=asked, generation_config="vllm", enable_prefix_caching=False, seed=0,
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    for begin in range(0, len(job["chats"]), vllm_settings.SEQUENCES):
        results += _results(llm, job, job["chats"][begin : begin + vllm_settings.SEQUENCES], asked)
        print("done", len(results), flush=True)
    return {"engine": vllm_settings.engine(dtype), "chats": results}


def _results(llm: Any, job: dict[str, Any], chats: list[dict[str, Any]], asked: int) -> list[dict[str, Any]]:
    """The answers for some chats."""
    from vllm import SamplingParams

    one = SamplingParams(temperature=0, max_tokens=1)
    greedy = SamplingParams(temperature=0, max_tokens=job["count"], stop_token_ids=job["stop"], ignore_eos=True, detokenize=False)
    forced = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=asked, detokenize=False)
    # one call for each chat, since tools and switches are those of a call
    prompts = [
        llm.chat(
            vllm_settings.messages(chat), one, use_tqdm=False, tools=chat["tools"] or None,
            chat_template_kwargs=vllm_settings.switches(chat),
        )[0].prompt_token_ids
        for chat in chats
    ]  # fmt: skip
    replies = llm.generate([{"prompt_token_ids": chat["ids"]} for chat in chats], greedy, use_tqdm=False)
    told = llm.generate([{"prompt_token_ids": chat["ids"] + chat["reply"]} for chat in chats], forced, use_tqdm=False)
    return [
        vllm_settings.result(
            job, chat, list(ids), list(reply.outputs[0].token_ids),
            [row and {token: found.logprob for token, found in row.items()} for row in rows.prompt_logprobs],
        )
        for chat, ids, reply, rows in zip(chats, prompts, replies, told, strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    vllm_settings.set_environment()
    answer = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
