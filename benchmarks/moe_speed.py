"""Forward and backward of a mixture of experts: real tokens per second of CPU time on one thread, compared to transformers.

    python benchmarks/moe_speed.py --rounds 5

Real tokens do not count padding. The baseline is transformers' Qwen2MoeForCausalLM of the same sizes on padded rows. Its
experts are computed in a loop over boolean masks ("eager"), as in MiniMind, or with grouped matrix products. Each round
measures every row of the table in turn, in one process, and ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from train_speed import TASKS, documents

from mm.backends.cpu.backend import CpuBackend
from mm.plugins.architectures.moe import MoEConfig, grouped
from mm.plugins.architectures.moe.model import MoE
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.heads import linear_cross_entropy

ROWS = ("(a) mask loop, padded, float32", "(b) mask loop, padded, bf16", "(c) grouped, padded, bf16", "mm, float32", "mm, bf16")
UNCUT = "mm, bf16, one product per expert"  # not cut into a multiple of 64 rows and the rest


def theirs(config: MoEConfig, experts: str) -> Any:
    """transformers' model of these sizes, with the load-balancing loss. `experts` is its implementation of the experts."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads, num_key_value_heads=config.num_key_value_heads,
            intermediate_size=config.ffn_size, moe_intermediate_size=config.ffn_size, num_experts=config.num_experts,
            shared_expert_intermediate_size=config.shared_ffn_size, num_experts_per_tok=config.num_experts_per_tok,
            norm_topk_prob=True, output_router_logits=True, tie_word_embeddings=True, attn_implementation="sdpa",
            experts_implementation=experts,
        )
    ).train()  # fmt: skip


def padded(model: Any, task: str, bf16: bool) -> Callable[[int], int]:
    """A function that runs forward and backward over padded rows and returns the number of real tokens."""

    def step(seed: int) -> int:
        rows = documents(task, seed, model.config.vocab_size)
        ids = torch.zeros(len(rows), TASKS[task][1], dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (tokens, learned) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)] = tokens.where(learned, -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        model.zero_grad()
        return sum(len(tokens) for tokens, _ in rows)

    return step


def packed(model: MoE, task: str, bf16: bool) -> Callable[[int], int]:
    """The same for our model, over packed documents."""

    def step(seed: int) -> int:
        rows = documents(task, seed, model.config.vocab_size)
        batch = pack([Unit((Tokens(ids, {"learn": learned}),)) for ids, learned in rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total, auxiliary = model(
                batch, head=lambda hidden, weight: linear_cross_entropy(hidden[batch.target_index], weight, batch.targets)
            )
            balance = model.auxiliary_loss(auxiliary, model.counts(batch))
        (total / batch.num_targets + balance).backward()
        model.zero_grad()
        return batch.num_tokens

    return step


def main() -> None:
    """Measure every row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="pretrain")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backend, config = CpuBackend(), MoEConfig(hidden_size=args.hidden_size)
    backend.setup()
    ours = torch.get_float32_matmul_precision()
    loop, fused = (padded(theirs(config, kind), args.task, True) for kind in ("eager", "grouped_mm"))
    plain = padded(theirs(config, "eager"), args.task, False)
    model = MoE(config, backend.kernels()).train()
    backend.fuse(model)
    half, block = packed(model, args.task, True), grouped.BLOCK
    steps = dict(zip(ROWS, (plain, loop, fused, packed(model, args.task, False), half), strict=True)) | {UNCUT: half}
    speeds: dict[str, list[float]] = {row: [] for row in steps}
    for number in range(args.rounds + 1):
        for row, step in steps.items():
            # our rows use the precision that the backend sets, the baseline transformers' default
            torch.set_float32_matmul_precision(ours if row.startswith("mm") else "highest")
            grouped.BLOCK = 1 << 30 if row == UNCUT else block
            start = time.process_time()
            tokens = step(number)
            if number:  # the first round builds kernels
                speeds[row].append(tokens / (time.process_time() - start))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    print(f"{versions}, {args.task}, {args.hidden_size}x8, 4 experts, top-2, shared; 1 thread, {args.rounds} rounds")
    print("; ".join((f"mm's float32 products: {ours} precision", *backend.notes)) + "\n")
    print("| row | real tokens/s of CPU time | to (a) |\n|---|---|---|")
    medians = {row: statistics.median(values) for row, values in speeds.items()}
    for row, speed in medians.items():
        print(f"| {row} | {speed:.0f} | {speed / medians[ROWS[0]]:.2f} |")


if __name__ == "__main__":
    main()
