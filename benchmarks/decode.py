"""Generated tokens per second, including the prefill, compared to transformers' Llama with the same weights.

    python benchmarks/decode.py --rounds 7

Decoding is greedy, all sequences have the same length, and there is no stop token. Each round measures every row of the table
in turn, so that other load on the machine slows all of them; ratios are ratios of medians. The baseline is transformers'
`generate` with its default settings, in float32.
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
from mm.contracts import Backend, Request, Sampling
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
    generators = {BASELINE: theirs(model)}
    backend.setup()  # from here on, float32 products may go through oneDNN; the baseline switches that off for its own calls
    generators |= ours(model, backend, options)
    print(f"{options.preset}, {options.prompt} prompt tokens, {options.new} new, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}")
    print(f"median of {options.rounds} interleaved rounds\n")
    print(f"{'tokens/s':<26}" + "".join(f"{f'batch {size}':>18}" for size in options.batch))
    columns = {size: measure(generators, size, model.config.vocab_size, options) for size in options.batch}
    for name in generators:
        cells = [f"{column[name]:8.0f} ({column[name] / column[BASELINE]:5.2f}x)" for column in columns.values()]
        print(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells))


def arguments() -> Any:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=[n for n, p in PRESETS.items() if not p.get("qk_norm")], default="minimind2-small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--sampled", action="store_true", help="add a row of mm with temperature 0.8 and top-p 0.9")
    return parser.parse_args()


def measure(generators: dict[str, Generate], size: int, vocabulary: int, options: Any) -> dict[str, float]:
    """The median tokens per second of each generator at a batch of `size` prompts, after a first round that is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in generators}
    for round in range(options.rounds + 1):
        prompts = torch.randint(vocabulary, (size, options.prompt))
        for name, generate in generators.items():
            start = time.perf_counter()
            ids = generate(prompts, options.new)
            seconds = time.perf_counter() - start
            assert [len(row) for row in ids] == [options.new] * size
            if round:
                speeds[name].append(size * options.new / seconds)
    return {name: statistics.median(values) for name, values in speeds.items()}


def ours(model: Dense, backend: Backend, options: Any) -> dict[str, Generate]:
    """The local engine in float32 and bfloat16; with `--sampled` also in bfloat16 with sampling."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.tie()
    generators = {"mm, float32": local_engine(model, backend, 0.0), "mm, bfloat16": local_engine(half, backend, 0.0)}
    if options.sampled:
        generators["mm, bfloat16, sampled"] = local_engine(half, backend, 0.8)
    return generators


def local_engine(model: Dense, backend: Backend, temperature: float) -> Generate:
    """The local engine as a function. Nothing has to be reset between calls, as the prompts are new in each round."""
    engine = LocalEngine(LocalConfig(slots=64), model, backend)
    sampling = Sampling(temperature=temperature, top_p=0.9)

    def generate(prompts: torch.Tensor, new: int) -> list[list[int]]:
        requests = [
            Request(ids=tuple(ids), max_new_tokens=new, sampling=sampling, key=(i,)) for i, ids in enumerate(prompts.tolist())
        ]
        return [list(completion.ids) for completion in engine.generate(requests)]

    return generate


def theirs(model: Dense) -> Generate:
    """`generate` of transformers' Llama with the same weights, as a function."""
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
