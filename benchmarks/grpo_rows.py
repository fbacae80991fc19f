"""The workers of grpo_speed.py, one process for each row of its table: `mm train`, transformers with a padded update, TRL."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from rounds import Clock, now
from train_speed import spread, start_ranks

from mm.contracts import Callback, Completion, OnToken, Request
from mm.core.hooks import hookimpl
from mm.core.records import EngineSpec
from mm.plugins.engines.local import LocalConfig

GENERATIONS, KL, LEARNING_RATE = 8, 0.04, 1e-6
WORDS = ("the", "sea", "stone", "river", "light", "house", "green", "under", "small", "old", "night", "walks", "sings", "to")


@attrs.define
class Work:
    """The arguments of a worker, and its measurements of the present round."""

    args: argparse.Namespace
    clock: Clock = attrs.field(factory=Clock)
    measured: dict[str, float] = attrs.field(factory=dict)

    @property
    def lengths(self) -> list[int]:
        """The length of each completion in tokens, the same in every round."""
        return spread(GENERATIONS * self.args.prompts, self.args.new, self.args.fill, seed=0)

    def rollout(self, action: Callable[[], Any]) -> Any:
        """Run `action` and return its result. Its time is added to that of the rollout."""
        start = now()
        result = action()
        for name, before, after in zip(("rollout_wall", "rollout_cpu"), start, now(), strict=True):
            self.measured[name] = self.measured.get(name, 0.0) + after - before
        return result

    def next_round(self) -> None:
        """End the present round, report its measurements, and wait for the next one."""
        self.clock.next_round(**self.measured)
        self.measured = {}


def prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of --prompt words and 0 to 7 further ones."""
    return [" ".join(WORDS[(i * 7 + n * n) % len(WORDS)] for n in range(args.prompt + i % 8)) for i in range(args.prompts)]


# ---- mm: a real run with an engine that ends completions at the given lengths. This file is also the plugin that declares it


class StepRounds(Callback):
    """Makes each training step one round, whose sizes and CPU time are those of all ranks."""

    cpu = 0.0

    def on_start(self, trainer: Any) -> None:
        """Wait for the first round."""
        trainer.backend.synchronize()
        self.next_round(trainer.world)

    def on_step(self, trainer: Any) -> None:
        """End the round and wait for the next one."""
        trainer.backend.synchronize()
        before, self.cpu = self.cpu, time.process_time()
        WORK.measured |= trainer.world.sum({**{n: WORK.measured[n] for n in ("read", "drawn")}, "cpu": self.cpu - before})
        self.next_round(trainer.world)

    def next_round(self, world: Any) -> None:
        """Rank 0 ends the round and starts the next one."""
        if world.main:
            WORK.next_round()
        WORK.measured = {}
        world.barrier()
        self.cpu = time.process_time()


@hookimpl
def mm_callbacks(run: Any) -> Iterable[Callback]:
    """The callback that counts rounds."""
    yield StepRounds()


@hookimpl
def mm_engines() -> Iterable[EngineSpec]:
    """The local engine with given completion lengths."""
    yield EngineSpec(name="set-lengths", summary="For benchmarks.", target=f"{__name__}:set_lengths", config=LocalConfig)


def set_lengths(config: LocalConfig, model: Any, backend: Any) -> Any:
    """A local engine whose completions have the lengths `Work.lengths`."""
    from mm.plugins.engines.local.engine import LocalEngine

    class SetLengths(LocalEngine):
        def update(self, named_tensors: Iterable[tuple[str, Any]], version: int) -> None:
            WORK.rollout(lambda: LocalEngine.update(self, named_tensors, version))

        def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
            first = int(os.environ.get("RANK", "0")) * len(requests)  # the lengths are divided evenly over the ranks
            ends = zip(requests, WORK.lengths[first : first + len(requests)], strict=True)
            cut = [attrs.evolve(request, max_new_tokens=length, stop=()) for request, length in ends]
            completions: list[Completion] = WORK.rollout(lambda: LocalEngine.generate(self, cut, on_token))
            WORK.measured |= {"read": sum(len(r.ids) for r in requests), "drawn": sum(len(c.ids) for c in completions)}
            return completions

    return SetLengths(config, model, backend)


def ours(args: argparse.Namespace) -> None:
    """`mm train --algo grpo`, until there are no more rounds."""
    import mm
    from mm.core.errors import MMError
    from mm.testing import plugin_manager

    try:
        mm.train(
            "grpo", workspace=args.folder / "workspace", run=args.worker, from_=args.folder / "model", engine="set-lengths",
            data=args.folder / "rows.jsonl", reward="length", num_generations=GENERATIONS, max_new_tokens=args.new, kl_coef=KL,
            learning_rate=LEARNING_RATE, global_batch_size=args.prompts, max_steps=10**5, eval_ratio=0.0, backend=args.backend,
            threads=1 if args.worker == "ranks" else args.threads, compile=args.compile, quiet=True,
            plugins=plugin_manager(sys.modules[__name__]),
        )  # fmt: skip
    except MMError as error:
        if not isinstance(error.__cause__, SystemExit):  # that there are no more rounds
            raise


# ---- transformers and TRL


def llama(args: argparse.Namespace) -> Any:
    """transformers' Llama with the same weights; a logits processor ends its completions at the lengths `Work.lengths`."""
    import torch
    from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

    class Ends(LogitsProcessor):
        def __init__(self, end: int) -> None:
            self.end, self.step, self.lengths = end, 0, torch.tensor(WORK.lengths)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.step += 1
            scores[:, self.end] = -torch.inf
            last = self.lengths == self.step
            scores[last] = -torch.inf
            scores[last, self.end] = 0.0
            return scores

    class Llama(LlamaForCausalLM):  # type: ignore[misc]
        def generate(self, *inputs: Any, **options: Any) -> Any:
            end = self.generation_config.eos_token_id
            ends = LogitsProcessorList([Ends(end)])
            ids = WORK.rollout(lambda: LlamaForCausalLM.generate(self, *inputs, logits_processor=ends, **options))
            prompt_mask = options["attention_mask"]
            last = (ids[:, prompt_mask.shape[1] :] == end).int().argmax(1)
            WORK.measured |= {"read": int(prompt_mask.sum()), "drawn": int((last + 1).sum())}
            return ids

    return Llama.from_pretrained(args.folder / "llama", dtype=torch.float32)


def padded(args: argparse.Namespace) -> None:
    """GRPO steps as in MiniMind's trainer: `generate`, log-probabilities of policy and reference over padded rows, an update."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.folder / "llama", padding_side="left")
    policy, reference = llama(args).train(), llama(args).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    while True:
        WORK.next_round()
        ids, mask, kept = sample(tokenizer, policy, args)
        texts = tokenizer.batch_decode(ids[:, -kept.shape[1] :], skip_special_tokens=True)
        rewards = torch.tensor([len(text) / 100 for text in texts]).view(-1, GENERATIONS)
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        with torch.no_grad():
            reference_logprobs = logprobs(reference, ids, mask, kept.shape[1])
        policy_logprobs = logprobs(policy, ids, mask, kept.shape[1])
        gap = reference_logprobs - policy_logprobs
        losses = -(policy_logprobs - policy_logprobs.detach()).exp() * advantages + KL * (gap.exp() - gap - 1)
        ((losses * kept).sum(1) / kept.sum(1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def sample(tokenizer: Any, policy: Any, args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Sample completions of all prompts, padded to P prompt tokens (on the left) and C completion tokens (on the right).
    Returns ids (N, P + C), the attention mask (N, P + C), and the mask of the real completion tokens (N, C)."""
    import torch

    chats = [[{"role": "user", "content": text}] for text in prompts(args) for _ in range(GENERATIONS)]
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    policy.eval()
    ids = policy.generate(**encoded, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=args.new)
    policy.train()
    width = encoded["input_ids"].shape[1]
    ends = (ids[:, width:] == tokenizer.eos_token_id).int().argmax(1)
    kept = torch.arange(ids.shape[1] - width) <= ends[:, None]
    return ids, torch.cat((encoded["attention_mask"], kept.long()), 1), kept.float()


def logprobs(model: Any, ids: Any, mask: Any, count: int) -> Any:
    """The log-probabilities of the last `count` tokens of each row."""
    logits = model(ids, attention_mask=mask, logits_to_keep=count + 1, use_cache=False).logits[:, :-1]
    return logits.log_softmax(-1).gather(2, ids[:, -count:, None]).squeeze(2)


def trl(args: argparse.Namespace) -> None:
    """TRL's GRPOTrainer, until there are no more rounds."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            WORK.next_round()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            WORK.next_round()

    config = GRPOConfig(
        output_dir=str(args.folder / "trl"), use_cpu=True, bf16=args.worker == "trl-bf16", gradient_checkpointing=False,
        num_generations=GENERATIONS, per_device_train_batch_size=GENERATIONS * args.prompts, max_completion_length=args.new,
        beta=KL, learning_rate=LEARNING_RATE, max_steps=10**5, logging_steps=10**5, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    GRPOTrainer(
        model=llama(args), args=config, callbacks=[Ends()], processing_class=AutoTokenizer.from_pretrained(args.folder / "llama"),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in prompts(args)]),
        reward_funcs=lambda completions, **_: [len(turns[0]["content"]) / 100 for turns in completions],
    ).train()  # fmt: skip


def sizes() -> argparse.ArgumentParser:
    """A parser with the options of grpo_speed.py that the workers need too."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--prompts", type=int, default=1, help="prompts per step")
    parser.add_argument("--prompt", type=int, default=24, help="words per prompt")
    parser.add_argument("--new", type=int, default=128, help="longest completion, in tokens")
    parser.add_argument("--fill", type=float, default=0.6, help="mean completion length, as a share of the longest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="cpu", help="of mm's row")
    parser.add_argument("--compile", action="store_true", help="compile the model of mm's row")
    return parser


def main() -> None:
    """Measure one row of the table, round by round, until there are no more rounds."""
    global WORK
    import torch

    parser = argparse.ArgumentParser(parents=[sizes()])
    parser.add_argument("worker")
    parser.add_argument("folder", type=Path)
    WORK = Work(parser.parse_args())
    if WORK.args.worker == "ranks" and "RANK" not in os.environ:
        start_ranks(WORK.args.threads)
    torch.set_num_threads(1 if WORK.args.worker == "ranks" else WORK.args.threads)
    torch.manual_seed(0)
    {"a": padded, "mm": ours, "ranks": ours}.get(WORK.args.worker, trl)(WORK.args)


if __name__ == "__main__":
    main()
