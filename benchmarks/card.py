"""The speed of one card: training (tokens/s, MFU) at two sizes, generation (tokens/s), and the time of a GRPO step.

    python benchmarks/card.py

Weights are random. A training step has --documents random documents of at most --length tokens (mean: 0.74 of that), and ends
with the optimizer's update. MFU is the FLOP/s of the model (`flops_per_token`: causal attention counts half) as a share of the
peak in the card's data sheet. Decoding is greedy, without a stop token; the time includes the prompts. The GRPO step is that of
grpo_speed.py: 8 completions per prompt, KL to a reference, one update. All values are medians of --rounds, after rounds that do
not count.

Without a card it says so and exits with 2. The same code at a small size on a CPU:

    python benchmarks/card.py --backend cpu --presets tiny --documents 8 --length 64 --batch 2 --new 8 --prompts 1 --rounds 1
"""

from __future__ import annotations

import argparse
import datetime
import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import grpo_speed
import train_speed
from rounds import WARM_UP, measure_in_turn

from mm.core.config.autoselect import choose_backend
from mm.core.errors import MMError
from mm.core.say import silent
from mm.plugins.architectures.dense import PRESETS
from mm.runtime.devices.host import host_cores
from mm.runtime.runs import api
from mm.testing import plugin_manager

if TYPE_CHECKING:
    from mm.contracts import Backend

STEPS = 5  # of training, per round


def timed(backend: Backend, action: Callable[[], object]) -> float:
    """The seconds that an action takes, with all that it gives the device to do."""
    backend.synchronize()
    start = time.perf_counter()
    action()
    backend.synchronize()
    return time.perf_counter() - start


def training(args: argparse.Namespace, backend: Backend, preset: str, row: str) -> list[str]:
    """The cells of a training with this preset; `row` is "eager" or "compiled", a row of train_speed.py."""
    import torch

    given = argparse.Namespace(**vars(args), preset=preset, worker=row, task="card", optimizer="adamw", cpu=0.0)
    torch.manual_seed(0)
    step, config = train_speed.packed(given), train_speed.dense_config(given)
    lengths = [len(ids) for ids, _ in train_speed.documents("card", 0, config.vocab_size)]
    seconds = [timed(backend, lambda: [step(seed) for seed in range(STEPS)]) for _ in range(WARM_UP + args.rounds)]
    speed = STEPS * sum(lengths) / statistics.median(seconds[WARM_UP:])
    context = sum(length**2 for length in lengths) / sum(lengths)  # the length of the document that a token is in, on average
    peak = backend.peak_flops(backend.default_dtype())
    share = f"{speed * config.flops_per_token(round(context)) / peak:.1%}" if peak else "peak not known"
    memory = f"{backend.memory()['peak'] / 2**30:.1f}"
    return [f"training, {millions(preset)}" + ", compiled" * (row == "compiled"), f"{speed:,.0f} tokens/s", share, memory]


def decoding(args: argparse.Namespace, backend: Backend, preset: str) -> Iterator[list[str]]:
    """The cells of generation with this preset, for each batch size."""
    import decode
    import torch

    from mm.plugins.architectures.dense import DenseConfig
    from mm.plugins.architectures.dense.model import Dense
    from mm.runtime.devices.dtypes import torch_dtype

    model = Dense(DenseConfig(**PRESETS[preset]), backend.kernels()).eval().requires_grad_(False)
    model = model.to(backend.device(), torch_dtype(backend.default_dtype()))
    model.tie()
    generate = decode.local_engine(model, backend, 0.0)
    for size in args.batch:
        seconds = []
        for _ in range(1 + args.rounds):
            prompts = torch.randint(model.config.vocab_size, (size, 32))
            seconds.append(timed(backend, lambda prompts=prompts: generate(prompts, args.new)))
        speed = size * args.new / statistics.median(seconds[1:])
        yield [f"generation, {millions(preset)}, batch {size}", f"{speed:,.0f} tokens/s", "", ""]


def grpo(args: argparse.Namespace, preset: str) -> list[str]:
    """The cells of a GRPO step with this preset, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given = argparse.Namespace(
            folder=Path(folder), preset=preset, prompts=args.prompts, prompt=24, new=args.new, fill=0.6, threads=host_cores(),
            backend=args.backend, compile=False,
        )  # fmt: skip
        grpo_speed.prepare(given)
        # that other processes use cores is not looked for: the device does the work
        rounds = measure_in_turn({"mm": grpo_speed.command(given, "mm")}, args.rounds, threads=1)["mm"][WARM_UP:]
    whole, rollout = (statistics.median(r[name] for r in rounds) for name in ("wall", "rollout_wall"))
    name = f"GRPO step, {millions(preset)}, {args.prompts} x {grpo_speed.GENERATIONS} completions"
    return [name, f"{whole:.2f} s ({rollout:.2f} s rollout)", "", ""]


def millions(preset: str) -> str:
    """The preset with its number of parameters."""
    from mm.plugins.architectures.dense import DenseConfig

    return f"{preset} ({DenseConfig(**PRESETS[preset]).num_parameters() / 1e6:.1f}M)"


def heading(args: argparse.Namespace, backend: Backend) -> str:
    """The card, the versions and the date."""
    facts = ", ".join(f"{name} {value}" for name, value in backend.capabilities().items() if name != "memory")
    total = backend.memory().get("total", 0) / 2**30
    packages = [name for name in ("minimind-ascend", "torch", "triton") if util.find_spec(name) or name == "minimind-ascend"]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    sizes = f"{args.documents} x {args.length}, micro-batches of {args.micro_batch_tokens} tokens, {args.new} new tokens"
    return (
        f"{facts}, {total:.0f} GiB\n{versions}, Python {platform.python_version()}, {platform.system()}\n"
        f"{datetime.date.today().isoformat()}, {backend.default_dtype()}, {sizes}, {args.rounds} rounds\n"
    )


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["minimind2-small", "minimind2"])
    parser.add_argument("--documents", type=int, default=256, help="per training step")
    parser.add_argument("--length", type=int, default=512, help="of the longest document, in tokens")
    parser.add_argument("--micro-batch-tokens", type=int, default=32768)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], help="sequences that are generated together")
    parser.add_argument("--prompts", type=int, default=8, help="per GRPO step")
    parser.add_argument("--new", type=int, default=256, help="longest completion, in tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out the row of --compile")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the rows as they are measured."""
    args = arguments()
    plugins = plugin_manager()
    try:
        args.backend = choose_backend(plugins, args.backend)[0]
        api.activate(plugins, args.backend, silent)
        from mm.runtime.models.opening import open_backend

        backend = open_backend(plugins, args.backend)
    except MMError as error:
        print(f"benchmarks/card.py measures a card, and there is none to use: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    train_speed.TASKS["card"] = (args.documents, args.length, 0.74, False)
    print(heading(args, backend), "| measure | speed | MFU | peak memory, GiB |", "|---|---|---|---|", sep="\n", flush=True)
    for cells in rows(args, backend):
        print(f"| {' | '.join(cells)} |", flush=True)
        gc.collect()
        backend.empty_cache()


def rows(args: argparse.Namespace, backend: Backend) -> Iterator[list[str]]:
    """The rows of the table."""
    for preset in args.presets:
        for row in ("eager",) if args.no_compile else ("eager", "compiled"):
            yield training(args, backend, preset, row)
    for preset in args.presets:
        yield from decoding(args, backend, preset)
    for preset in args.presets:
        yield grpo(args, preset)


if __name__ == "__main__":
    main()
