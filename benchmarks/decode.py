"""Generated tokens a second, reading the prompt included, beside transformers' Llama with the same weights.

    python benchmarks/decode.py --rounds 7

Greedy, all rows of the same lengths, no stop token. The rounds go through the rows of the table in turn, so that a busy
machine slows all of them; a ratio is one of medians. The baseline is transformers' `generate` as it comes, in float32.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from mm.backends.cpu.backend import CpuBackend
from mm.contracts import Request, Sampling
from mm.plugins.architectures.dense import PRESETS, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine

Generate = Callable[[torch.Tensor, int], list[list[int]]]
BASELINE = "transformers, float32"


def main() -> None:
    """Measure and print."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backend = CpuBackend()
    model = Dense(DenseConfig(**PRESETS[options.preset]), backend.kernels()).eval().requires_grad_(False)
    ways = {BASELINE: theirs(model)}
    backend.setup()  # after it, float32 products go through oneDNN; the baseline switches that off for itself
    ways |= ours(model, backend, options)
    print(f"{options.preset}, {options.prompt} prompt tokens, {options.new} new, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}")
    print(f"median of {options.rounds} interleaved rounds\n")
    print(f"{'tokens/s':<26}" + "".join(f"{f'batch {size}':>18}" for size in options.batch))
    columns = {size: measure(ways, size, model.config.vocab_size, options) for size in options.batch}
    for name in ways:
        cells = [f"{column[name]:8.0f} ({column[name] / column[BASELINE]:5.2f}x)" for column in columns.values()]
        print(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells))


def arguments() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=[n for n, p in PRESETS.items() if not p.get("qk_norm")], default="minimind2-small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--sampled", action="store_true", help="ours with temperature 0.8 and top-p 0.9")
    return parser.parse_args()


def measure(ways: dict[str, Generate], size: int, vocabulary: int, options: Any) -> dict[str, float]:
    """Median tokens a second of each way, after a first round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round in range(options.rounds + 1):
        prompts = torch.randint(vocabulary, (size, options.prompt))
        for name, generate in ways.items():
            start = time.perf_counter()
            ids = generate(prompts, options.new)
            seconds = time.perf_counter() - start
            assert [len(row) for row in ids] == [options.new] * size
            if round:
                found[name].append(size * options.new / seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def ours(model: Dense, backend: CpuBackend, options: Any) -> dict[str, Generate]:
    """The local engine in two types; `--sampled` adds what drawing costs."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.tie()
    ways = {"mm, float32": way(model, backend, 0.0), "mm, bfloat16": way(half, backend, 0.0)}
    if options.sampled:
        ways["mm, bfloat16, sampled"] = way(half, backend, 0.8)
    return ways


def way(model: Dense, backend: CpuBackend, temperature: float) -> Generate:
    """An engine as a function. It forgets its cache between calls by itself: the prompts are new each round."""
    engine = LocalEngine(LocalConfig(slots=64), model, backend)
    sampling = Sampling(temperature=temperature, top_p=0.9)

    def generate(prompts: torch.Tensor, new: int) -> list[list[int]]:
        requests = [
            Request(ids=tuple(ids), max_new_tokens=new, sampling=sampling, key=(i,)) for i, ids in enumerate(prompts.tolist())
        ]
        return [list(completion.ids) for completion in engine.generate(requests)]

    return generate


def theirs(model: Dense) -> Generate:
    """transformers' Llama with the same weights."""
    config = model.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads, num_key_value_heads=config.num_key_value_heads,
            intermediate_size=config.ffn_size, rms_norm_eps=config.rms_norm_eps, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_position_embeddings,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    llama.load_state_dict(model.state_dict())

    def generate(prompts: torch.Tensor, new: int) -> list[list[int]]:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        mask = torch.ones_like(prompts)
        ids = llama.generate(prompts, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        torch.set_float32_matmul_precision(precision)
        return ids[:, prompts.shape[1] :].tolist()

    return generate


if __name__ == "__main__":
    main()
