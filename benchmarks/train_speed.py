"""Real training tokens per second, including the optimizer step, compared to transformers' Llama of the same size.

    python benchmarks/train_speed.py --task all --rounds 5

Real tokens do not count padding. Each row of the table runs in a process of its own, with its own settings and peak memory.
Each round measures every row in turn, so that other load on the machine slows all of them, and ratios are ratios of medians.
A round in which the process did not have a core per thread to itself ("cores" below 95% of --threads) is measured again, up to
ten times. With --threads 1, times are CPU times of the process, which other load hardly changes.

Baselines: (a) documents padded to the task's length, float32, torch's AdamW with default settings; (b) the same under bfloat16
autocast with fused AdamW. Neither gets an attention mask (right padding needs none), so that both can use torch's causal
kernel.

The row "ranks" is `--nproc` with --threads ranks of one thread each, which divide the documents of every step.
"""

from __future__ import annotations

import argparse
import atexit
import math
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from rounds import WARM_UP, Clock, Round, measure_in_turn

from mm.core.settings import TrainSettings

# documents per step, padded length, fill (mean length / padded length), True if only each document's second half is learned
TASKS = {
    "pretrain": (8, 340, 0.74, False),
    "sft340": (8, 340, 0.47, True),
    "sft512": (8, 512, 0.36, True),
    "short": (32, 64, 0.60, False),
}
ROWS = {
    "a": "(a) transformers, padded, float32",
    "b": "(b) transformers, padded, bf16, fused AdamW",
    "eager": "mm",
    "compiled": "mm --compile",
    "dropout": "mm --dropout 0.1",
    "ranks": "mm --nproc {}",
}
STEPS = 2  # per round


def spread(count: int, longest: int, fill: float, seed: int) -> list[int]:
    """`count` random lengths of at least 2, in random order. Their mean is about fill * longest: they are
    longest * u ** (1 / fill - 1) for stratified uniform u in [0, 1)."""
    rng = random.Random(seed)
    lengths = [max(2, round(longest * ((i + rng.random()) / count) ** (1 / fill - 1))) for i in range(count)]
    rng.shuffle(lengths)
    return lengths


def documents(task: str, seed: int, vocab_size: int) -> list[tuple[Any, Any]]:
    """(ids, mask of learned positions) of each document of one step; both have the document's length."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    pairs = []
    count, longest, fill, half = TASKS[task]
    for length in spread(count, longest, fill, seed):
        learned = torch.arange(length) >= (length // 2 if half else 0)
        pairs.append((torch.randint(vocab_size, (length,), generator=generator), learned))
    return pairs


# ---- the rows, each in its own process


def padded(args: argparse.Namespace) -> Callable[[int], int]:
    """A function that trains transformers' Llama for one step on padded documents; it returns the number of real tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = dense_config(args)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.ffn_size,
            num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads, tie_word_embeddings=True, attn_implementation="sdpa",
        )
    ).train()  # fmt: skip
    tuned = args.worker == "b"
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, **({"fused": True} if tuned else {}))

    def step(seed: int) -> int:
        rows = documents(args.task, seed, config.vocab_size)
        ids = torch.zeros(len(rows), TASKS[args.task][1], dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (tokens, learned) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)] = tokens.where(learned, -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return sum(len(tokens) for tokens, _ in rows)

    return step


def packed(args: argparse.Namespace) -> Callable[[int], int]:
    """The same for our Trainer on --backend: packing, next-token loss, gradient clipping, optimizer step."""
    from mm.plugins.algorithms.next_token import NextToken
    from mm.plugins.architectures.dense.model import Dense
    from mm.runtime.data.order import partition
    from mm.runtime.models.opening import open_backend
    from mm.runtime.nn.batch import Tokens, Unit
    from mm.runtime.training.distributed import join_world
    from mm.runtime.training.roles import Role
    from mm.runtime.training.state import TrainState
    from mm.runtime.training.trainer import Trainer
    from mm.testing import plugin_manager

    backend, config = open_backend(plugin_manager(), args.backend), dense_config(args)
    world = join_world(backend)  # one rank, unless this is a worker of the row of ranks
    model = Dense(config, backend.kernels()).to(backend.device(world.local_rank))
    backend.fuse(model)
    declined = backend.compile(model) if args.worker == "compiled" else None
    if declined:
        raise SystemExit(declined)
    roles = {"policy": Role("policy", model, trainable=True)}
    dropout = 0.1 if args.worker == "dropout" else 0.0
    state = TrainState(
        settings=TrainSettings(
            max_steps=10**6, optimizer=args.optimizer, dropout=dropout, micro_batch_tokens=args.micro_batch_tokens
        ),
        backend=backend, world=world, roles=roles, algorithm=NextToken(None, roles, None), feed=None,
    )  # fmt: skip
    trainer = Trainer(state, evaluate=lambda _: {})

    def step(seed: int) -> int:
        rows = documents(args.task, world.gather(seed)[0], config.vocab_size)
        mine = partition([len(ids) for ids, _ in rows], world.size)[world.rank]
        trainer.train_step([Unit((Tokens(rows[i][0], {"learn": rows[i][1]}),)) for i in mine])
        if math.isnan(state.meter.read(state.world)["loss"]):
            raise SystemExit("the loss is NaN")
        args.cpu = world.sum({"cpu": time.process_time()})["cpu"]
        return sum(len(ids) for ids, _ in rows)

    return step


def dense_config(args: argparse.Namespace) -> Any:
    """The config of the preset."""
    from mm.plugins.architectures.dense import PRESETS, DenseConfig

    return DenseConfig(**PRESETS[args.preset])


def work(args: argparse.Namespace) -> None:
    """Measure round after round, until there are no more."""
    import torch

    if args.worker == "ranks" and "RANK" not in os.environ:
        start_ranks(args.threads)
    torch.set_num_threads(1 if args.worker == "ranks" else args.threads)
    torch.manual_seed(0)
    step = (padded if args.worker in "ab" else packed)(args)
    if os.environ.get("RANK", "0") != "0":
        while True:  # rank 0 gives the seeds, and ends this process with itself
            step(0)
    clock = Clock()
    number = clock.next_round()
    while True:
        before = args.cpu
        tokens = sum(step(number * STEPS + index) for index in range(STEPS))
        # of all ranks; the first round begins at their start
        number = clock.next_round(tokens=tokens, **({"cpu": args.cpu - before} if args.worker == "ranks" else {}))


def start_ranks(count: int) -> None:
    """Make this process rank 0 of `count` ranks, and start the others with the same command line. They end with it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environ = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environ["OMP_NUM_THREADS"] = 1
    for rank in range(count):
        os.environ.update({name: str(value) for name, value in {**environ, "RANK": rank, "LOCAL_RANK": rank}.items()})
        if rank:
            other = subprocess.Popen([sys.executable, *sys.argv], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            atexit.register(other.kill)
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0"})


# ---- the table


def command(args: argparse.Namespace, task: str, row: str) -> list[str]:
    """The command line of a row's worker."""
    options = {"worker": row, "task": task, "threads": args.threads, "preset": args.preset, "optimizer": args.optimizer}
    return [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]


def report(task: str, clock: str, threads: int, results: dict[str, list[Round]]) -> Iterator[str]:
    """The lines of the table; `clock` is "wall" or "cpu"."""
    count, longest, _, half = TASKS[task]
    measured = {row: rounds[WARM_UP:] for row, rounds in results.items()}
    tokens = statistics.mean(r["tokens"] for rounds in measured.values() for r in rounds) / STEPS
    yield f"{task}: {count} documents x {longest}, fill {tokens / count / longest:.2f}" + ", half learned" * half
    speeds = {row: statistics.median(r["tokens"] / r[clock] for r in rounds) for row, rounds in measured.items()}
    yield "| row | real tokens/s | to (a) | to (b) | to mm | cores | peak, MiB | first steps, s |"
    yield "|---|---|---|---|---|---|---|---|"
    for row, rounds in measured.items():
        ratios = [f"{speeds[row] / speeds[b]:.2f}" if b in speeds else "" for b in ("a", "b", "eager")]
        cores = statistics.median(r["cpu"] / r["wall"] for r in rounds)
        rest = f"{cores:.2f} | {rounds[-1]['peak'] / 2**20:.0f} | {results[row][0]['wall']:.1f}"
        yield f"| {ROWS[row].format(threads)} | {speeds[row]:.0f} | {' | '.join(ratios)} | {rest} |"


def main() -> None:
    """Parse the command line, and print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of our rows")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["a", "b", "eager", "compiled"])
    parser.add_argument("--worker", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.backend, args.micro_batch_tokens = "cpu", TrainSettings().micro_batch_tokens
    args.cpu = 0.0  # CPU seconds of all ranks of a worker
    if args.worker:
        return work(args)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    print(f"python {platform.python_version()}, {versions}, {args.preset}, {args.threads} threads, {args.rounds} rounds\n")
    clock = "cpu" if args.threads == 1 else "wall"
    for task in [t for t in TASKS if t != "short"] if args.task == "all" else [args.task]:
        rows = [row for row in args.rows if row != "ranks" or args.threads > 1]
        results = measure_in_turn({row: command(args, task, row) for row in rows}, args.rounds, args.threads)
        print("\n".join(report(task, clock, args.threads, results)) + "\n", flush=True)


if __name__ == "__main__":
    main()
