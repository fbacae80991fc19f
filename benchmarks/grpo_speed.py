"""A GRPO rollout and a whole GRPO step of `mm train`, beside transformers' `generate` with a padded update, and TRL.

    python benchmarks/grpo_speed.py --threads 1 --rounds 5

A step draws 8 completions a prompt, scores them, asks the reference, and updates the policy (KL 0.04, AdamW). All rows of
the table have the same weights, prompts and completion lengths: where a completion ends is set by a seeded rule, the
tokens are drawn. Each row is a process of its own; the rounds go through the rows in turn, and ratios are ratios of
medians. With --threads 1 the clock is the process's CPU time, which neighbours hardly touch.

(a) is transformers' `generate` in float32 and a padded update as MiniMind's: both models over whole rows, AdamW as torch
makes it. TRL's GRPOTrainer runs its own loop, without gradient checkpointing; it needs the extra `peers`.
A rollout is what `generate` takes and, in mm, the engine's update to the present weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import attrs
from rounds import WARM_UP, Clock, Round, interleaved, now
from train_speed import spread

from mm.core.contracts import Callback, Completion, OnToken, Request
from mm.core.hooks import hookimpl
from mm.core.records import EngineSpec
from mm.plugins.engines.local import LocalConfig

ROWS = {"a": "(a) transformers, padded, float32", "trl": "TRL, float32", "trl-bf16": "TRL, bf16", "mm": "mm"}
GENERATIONS, KL, LEARNING_RATE = 8, 0.04, 1e-6
WORDS = ("the", "sea", "stone", "river", "light", "house", "green", "under", "small", "old", "night", "walks", "sings", "to")


@attrs.define
class Work:
    """What a worker is to do, and what it found out about the round under way."""

    args: argparse.Namespace
    clock: Clock = attrs.field(factory=Clock)
    figures: dict[str, float] = attrs.field(factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion, in every round."""
        return spread(GENERATIONS * self.args.prompts, self.args.new, self.args.fill, seed=0)

    def rollout(self, action: Callable[[], Any]) -> Any:
        """Its answer; its time counts as the rollout's."""
        start = now()
        answer = action()
        for name, before, after in zip(("rollout_wall", "rollout_cpu"), start, now(), strict=True):
            self.figures[name] = self.figures.get(name, 0.0) + after - before
        return answer

    def turn(self) -> None:
        """One round ends, the next one begins."""
        self.clock.turn(**self.figures)
        self.figures = {}


def prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of --prompt words and 0 to 7 further ones."""
    return [" ".join(WORDS[(i * 7 + n * n) % len(WORDS)] for n in range(args.prompt + i % 8)) for i in range(args.prompts)]


# ---- mm: a real run, whose engine is told where completions end. This file is also the plugin that gives it


class RoundEnds(Callback):
    """Tells the clock where steps end."""

    def on_start(self, trainer: Any) -> None:
        """The first round begins."""
        WORK.turn()

    def on_step(self, trainer: Any) -> None:
        """The next one."""
        WORK.turn()


@hookimpl
def mm_callbacks(run: Any) -> Iterable[Callback]:
    """The clock."""
    yield RoundEnds()


@hookimpl
def mm_engines() -> Iterable[EngineSpec]:
    """The local engine with set lengths."""
    yield EngineSpec(name="set-lengths", summary="For benchmarks.", target=f"{__name__}:set_lengths", config=LocalConfig)


def set_lengths(config: LocalConfig, model: Any, backend: Any) -> Any:
    """The local engine; its completions end where the round's rule says."""
    from mm.plugins.engines.local.engine import LocalEngine

    class SetLengths(LocalEngine):
        def update(self, named_tensors: Iterable[tuple[str, Any]], version: int) -> None:
            WORK.rollout(lambda: LocalEngine.update(self, named_tensors, version))

        def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
            ends = zip(requests, WORK.lengths, strict=True)
            cut = [attrs.evolve(request, max_new_tokens=length, stop=()) for request, length in ends]
            found: list[Completion] = WORK.rollout(lambda: LocalEngine.generate(self, cut, on_token))
            WORK.figures |= {"read": sum(len(r.ids) for r in requests), "drawn": sum(len(c.ids) for c in found)}
            return found

    return SetLengths(config, model, backend)


def ours(args: argparse.Namespace) -> None:
    """`mm train` until the last round."""
    import mm
    from mm.testing import plugin_manager

    mm.train(
        "grpo", workspace=args.folder / "workspace", run="timed", from_=args.folder / "model", data=args.folder / "rows.jsonl",
        engine="set-lengths", reward="length", num_generations=GENERATIONS, max_new_tokens=args.new, kl_coef=KL,
        learning_rate=LEARNING_RATE, global_batch_size=args.prompts, max_steps=10**5, eval_ratio=0.0, backend="cpu",
        threads=args.threads, compile=args.compile, quiet=True, plugins=plugin_manager(sys.modules[__name__]),
    )  # fmt: skip


# ---- transformers and TRL


def llama(args: argparse.Namespace) -> Any:
    """transformers' Llama of the same weights; its completions end where the round's rule says, by the token that ends."""
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
            asked = options["attention_mask"]
            places = (ids[:, asked.shape[1] :] == end).int().argmax(1)
            WORK.figures |= {"read": int(asked.sum()), "drawn": int((places + 1).sum())}
            return ids

    return Llama.from_pretrained(args.folder / "llama", dtype=torch.float32)


def padded(args: argparse.Namespace) -> None:
    """Steps as MiniMind's trainer makes them: `generate`, log-probabilities of both models over padded rows, an update."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.folder / "llama", padding_side="left")
    policy, reference = llama(args).train(), llama(args).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    chats = [[{"role": "user", "content": text}] for text in prompts(args) for _ in range(GENERATIONS)]
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": args.new}

    def logprobs(model: Any, ids: Any, mask: Any, count: int) -> Any:
        logits = model(ids, attention_mask=mask, logits_to_keep=count + 1, use_cache=False).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, ids[:, -count:, None]).squeeze(2)

    while True:
        WORK.turn()
        asked = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        )
        width = asked["input_ids"].shape[1]
        policy.eval()
        ids = policy.generate(**asked, **sampling)
        policy.train()
        texts = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        ends = (ids[:, width:] == tokenizer.eos_token_id).int().argmax(1)
        kept = (torch.arange(ids.shape[1] - width) <= ends[:, None]).float()
        mask = torch.cat((asked["attention_mask"], kept.long()), 1)
        rewards = torch.tensor([len(text) / 100 for text in texts]).view(-1, GENERATIONS)
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        with torch.no_grad():
            expected = logprobs(reference, ids, mask, kept.shape[1])
        found = logprobs(policy, ids, mask, kept.shape[1])
        gap = expected - found
        each = -(found - found.detach()).exp() * advantages + KL * (gap.exp() - gap - 1)
        ((each * kept).sum(1) / kept.sum(1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def trl(args: argparse.Namespace) -> None:
    """TRL's trainer until the last round."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            WORK.turn()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            WORK.turn()

    torch.set_num_threads(args.threads)
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


def work(args: argparse.Namespace) -> None:
    """One row's process."""
    global WORK
    import torch

    WORK = Work(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    {"a": padded, "mm": ours}.get(args.worker, trl)(args)


# ---- the table


def prepare(args: argparse.Namespace) -> None:
    """Write the model, for both libraries, and the prompts."""
    import mm

    rows = [{"prompt": text} for text in prompts(args)]
    (args.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = mm.train(
        "pretrain", workspace=args.folder / "made", run="model", arch="dense", preset=args.preset, data="classics:en",
        backend="cpu", max_steps=1, global_batch_size=1, max_length=32, eval_ratio=0.0, quiet=True,
    )  # fmt: skip
    run.model.rename(args.folder / "model")
    mm.convert(args.folder / "model", args.folder / "llama", to="llama")


def command(args: argparse.Namespace, row: str) -> list[str]:
    """A row's process."""
    names = ("folder", "prompts", "prompt", "new", "fill", "threads")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    return [sys.executable, __file__, f"--worker={row}", *options, *["--compile"] * args.compile]


def report(args: argparse.Namespace, found: dict[str, list[Round]]) -> Iterator[str]:
    """The table's lines."""
    sizes = {(r["read"], r["drawn"]) for rounds in found.values() for r in rounds}
    assert len(sizes) == 1, f"the rows did not do the same work: {sizes}"
    read, drawn = sizes.pop()
    count = GENERATIONS * args.prompts
    yield f"{count} completions of {args.prompts} prompts, {read / count:.0f} tokens read and {drawn / count:.0f} drawn each"
    yield f"(at most {args.new}: fill {drawn / count / args.new:.2f})\n"
    clock = "cpu" if args.threads == 1 else "wall"
    yield "| row | rollout, s | to (a) | rest of the step, s | to (a) | step, s | to (a) | cores |\n" + "|---" * 8 + "|"
    middle = {}
    for row, rounds in found.items():
        measured = rounds[WARM_UP:]
        whole, rollout = ([r[name] for r in measured] for name in (clock, f"rollout_{clock}"))
        parts = (rollout, [w - r for w, r in zip(whole, rollout, strict=True)], whole)
        middle[row] = [statistics.median(values) for values in parts]
        against = middle.get("a")
        cells = [f"{s:.2f} | {against[i] / s:.2f}" if against else f"{s:.2f} |" for i, s in enumerate(middle[row])]
        cores = statistics.median(r["cpu"] / r["wall"] for r in measured)
        yield f"| {ROWS[row]} | {' | '.join(cells)} | {cores:.2f} |"


def main() -> None:
    """Parse the command line; measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--prompts", type=int, default=1, help="prompts a step")
    parser.add_argument("--prompt", type=int, default=24, help="words of a prompt")
    parser.add_argument("--new", type=int, default=128, help="longest completion, in tokens")
    parser.add_argument("--fill", type=float, default=0.6, help="mean completion length, as a share of the longest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="of our row")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--worker", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    if util.find_spec("trl") is None:
        args.rows = [row for row in args.rows if not row.startswith("trl")]
        print("TRL is not installed (it comes with the extra `peers`): its rows are left out")
    named = [name for name in ("torch", "transformers", "trl") if util.find_spec(name)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in named)
    print(f"python {platform.python_version()}, {versions}, {args.preset}, {args.threads} threads, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        prepare(args)
        found = interleaved({row: command(args, row) for row in args.rows}, args.rounds, args.threads)
    print("\n".join(report(args, found)))


if __name__ == "__main__":
    main()
