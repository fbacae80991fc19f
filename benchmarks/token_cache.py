"""Tokens per second of building the token cache, compared to `datasets.map` with the same tokenizer and as many processes.

    pip install datasets          # for this benchmark only: mm does not need it
    python benchmarks/token_cache.py --megabytes 40 --workers 2 --rounds 3

Both read the same file of JSON lines (the classics, numbered so that no row repeats) and write token ids and the mask of
learned positions to the disk. `datasets` is measured twice: `map` alone, over rows that are already in its own Arrow file, and
`load + map`, from the JSON lines, as mm does. Both are batched, with `encode_batch`, and cut rows as mm does. Each round
measures every way in turn, in a new process and into an empty folder, so that other load on the machine slows all of them;
ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 512
WAYS = {"mm": "mm", "map": "datasets: map alone", "load": "datasets: load + map"}


def write_rows(path: Path, megabytes: float) -> int:
    """Write a file of about that size. Returns its number of rows."""
    from mm.plugins.sources.classics.source import Classics

    texts = [str(row["text"]) for _, row in Classics(None, "classics", "text").rows()]
    rows, size = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            line = json.dumps({"text": f"{rows} {texts[rows % len(texts)]}"}, ensure_ascii=False) + "\n"
            size += len(line.encode())
            file.write(line)
            rows += 1
    return rows


# ---- the ways, each in its own process; each returns (tokens, seconds)


def build_cache(data: Path, folder: Path, workers: int) -> tuple[int, float]:
    """Build mm's token cache."""
    from mm.plugins.formats import text
    from mm.plugins.sources.files.source import Files
    from mm.runtime.data.cache import build_or_open
    from mm.runtime.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load()
    start = time.perf_counter()
    store = build_or_open(
        Files(None, str(data), "text"), list(text.mm_formats()), tokenizer, max_length=MAX_LENGTH, folder=folder, workers=workers
    )
    return store.info.tokens, time.perf_counter() - start


def map_rows(data: Path, folder: Path, workers: int, with_loading: bool) -> tuple[int, float]:
    """Run `datasets.map`. `with_loading` includes the time of making the Arrow file."""
    import datasets

    from mm.runtime.text.rows import cut_text
    from mm.runtime.text.tokenizer import Tokenizer

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.load()
    backend, bos, eos = tokenizer.backend, tokenizer.bos_id, tokenizer.eos_id
    backend.encode_special_tokens = True

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        encoded = backend.encode_batch(batch["text"], add_special_tokens=False)
        pieces = [piece for e in encoded for piece in cut_text([*([] if bos is None else [bos]), *e.ids, eos], MAX_LENGTH)]
        return {"input_ids": pieces, "learn": [[False] + [True] * (len(piece) - 1) for piece in pieces]}

    types = {"input_ids": datasets.List(datasets.Value("uint16")), "learn": datasets.List(datasets.Value("bool"))}
    start = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(folder))
    if not with_loading:
        start = time.perf_counter()
    mapped = rows.map(
        encode, batched=True, num_proc=workers, remove_columns=["text"], features=datasets.Features(types),
        load_from_cache_file=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return sum(len(ids) for ids in mapped.with_format("numpy")["input_ids"]), seconds


def one_round(way: str, data: Path, workers: int) -> tuple[int, float]:
    """Measure one way in a new process, with an empty folder that is removed afterwards. Returns (tokens, seconds)."""
    folder = Path(tempfile.mkdtemp(prefix="token-cache-", dir=data.parent))
    # the processes of datasets are forks; without this, each would encode with as many threads as there are cores
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(folder), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, __file__, "--worker", way, "--data", str(data), "--folder", str(folder), "--workers", str(workers)]
    try:
        completed = subprocess.run(words, env=env, capture_output=True, text=True)
        if completed.returncode:
            sys.exit(completed.stderr)
        tokens, seconds = json.loads(completed.stdout.splitlines()[-1])
        return tokens, seconds
    finally:
        shutil.rmtree(folder)


def compare(args: argparse.Namespace) -> None:
    """Measure all rounds, and print the table."""
    with tempfile.TemporaryDirectory(prefix="mm-benchmark-") as name:
        data = Path(name) / "rows.jsonl"
        rows = write_rows(data, args.megabytes)
        print(f"{rows:,} rows, {data.stat().st_size / 1e6:.0f} MB, {args.workers} processes, {args.rounds} rounds")
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        counts: dict[str, int] = {}
        for number in range(args.rounds):
            for way in WAYS:
                counts[way], seconds = one_round(way, data, args.workers)
                rates[way].append(counts[way] / seconds)
                print(f"round {number + 1}  {WAYS[way]:22} {rates[way][-1]:10,.0f} tokens/s", flush=True)
    assert len(set(counts.values())) == 1, f"the ways encode different numbers of tokens: {counts}"
    print("\n| | tokens/s, median | mm relative to it |\n|---|---|---|")
    medians = {way: statistics.median(values) for way, values in rates.items()}
    for way, label in WAYS.items():
        print(f"| {label} | {medians[way]:,.0f} | {medians['mm'] / medians[way]:.2f}x |")


def main() -> None:
    """Parse the command line; compare all ways, or as a worker measure one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("--worker", "--data", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.worker:
        compare(args)
        return
    data, folder = Path(args.data), Path(args.folder)
    if args.worker == "mm":
        result = build_cache(data, folder, args.workers)
    else:
        result = map_rows(data, folder, args.workers, with_loading=args.worker == "load")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
