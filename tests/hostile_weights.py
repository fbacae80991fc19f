"""Model folders whose weights were damaged in one place, by a seed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file

Mutation = Callable[[Path, random.Random], None]
CANARY = "canary"
FIRST = "model.embed_tokens.weight"


@attrs.frozen
class Case:
    """`mutation` of a copy of the folder `base`. `fails`: no such folder can be used."""

    name: str
    base: str
    mutation: Mutation
    fails: bool = True


def write(name: str, content: bytes) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return mutation


def instead(name: str, make: Callable[[Path], Any]) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return mutation


def _flip(name: str, count: int, within: int) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        data = bytearray((folder / name).read_bytes())
        for _ in range(count):
            data[rng.randrange(min(within, len(data)))] = rng.randrange(256)
        (folder / name).write_bytes(bytes(data))

    return mutation


def weights(change: Callable[[dict[str, Any], str], None]) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        state = load_file(folder / "model.safetensors")
        change(state, rng.choice(sorted(state)))
        save_file(state, folder / "model.safetensors")

    return mutation


def _value(number: float) -> Callable[[dict[str, Any], str], None]:
    def change(state: dict[str, Any], name: str) -> None:
        state[name] = state[name].clone()
        state[name].view(-1)[0] = number

    return change


def _header(change: Callable[[dict[str, Any]], Any]) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        data = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        header.update({FIRST: header.pop("lm_head.weight")} if FIRST not in header else {})  # ours has the tied one's other name
        change(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return mutation


class _Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.folder / CANARY}",)


def _pickled(folder: Path, rng: random.Random) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Code(folder)}))


def _shards(change: Callable[[Path, dict[str, Any]], Any]) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        names = sorted(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index: dict[str, Any] = {"weight_map": dict.fromkeys(names, "a.safetensors")}
        changed = change(folder, index["weight_map"])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index if changed is None else changed))

    return mutation


CHANGES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "nan": _value(float("nan")), "infinite": _value(float("-inf")),
    "overflow": lambda s, n: s.update({k: v * 0 + 1e38 for k, v in s.items()}),
    "integers": lambda s, n: s.update({n: s[n].to(torch.int64)}), "truth": lambda s, n: s.update({n: s[n] > 0}),
    "complex": lambda s, n: s.update({n: s[n].to(torch.complex64)}),
    "missing": lambda s, n: s.pop(n), "extra": lambda s, n: s.update(extra=torch.ones(2)),
    "shape": lambda s, n: s.update({n: torch.ones(3, 3, 3)}), "scalar": lambda s, n: s.update({n: torch.tensor(1.0)}),
    "none": lambda s, n: s.clear(),
}  # fmt: skip


def of_weights(base: str, rng: random.Random) -> Iterator[Case]:
    for name in rng.sample(sorted(CHANGES), 6):
        # the norms of huge weights are zeros: an answer without meaning, of finite numbers
        yield Case(f"{base}:weights:{name}", base, weights(CHANGES[name]), fails=name != "overflow")
    headers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "exabytes": lambda h: h[FIRST].update(data_offsets=[0, 2**63]), "vast": lambda h: h[FIRST].update(shape=[2**40, 2**40]),
        "negative": lambda h: h[FIRST].update(shape=[-1, 4]), "type": lambda h: h[FIRST].update(dtype="Z9"),
        "overlap": lambda h: h[FIRST].update(data_offsets=[0, 8]), "empty": lambda h: h.clear(),
    }  # fmt: skip
    for name in rng.sample(sorted(headers), 3):
        yield Case(f"{base}:header:{name}", base, _header(headers[name]))
    for number in range(3):
        yield Case(f"{base}:flipped:{number}", base, _flip("model.safetensors", 3, 400), fails=False)
    yield Case(f"{base}:length", base, write("model.safetensors", struct.pack("<Q", 2**63) + b"{}"))
    yield Case(f"{base}:unlinked", base, instead("model.safetensors", lambda path: None))
    if base == "native":
        return
    yield Case(f"{base}:pickled", base, _pickled)
    shards: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
        "outside": lambda f, m: m.update({FIRST: "../secret.safetensors"}),
        "absolute": lambda f, m: m.update({FIRST: "/etc/passwd"}), "missing": lambda f, m: m.update({FIRST: "b.safetensors"}),
        "pipe": lambda f, m: os.mkfifo(f / "p") or m.update({FIRST: "p"}),
        "number": lambda f, m: m.update({FIRST: 3}), "list": lambda f, m: {"weight_map": [1]}, "none": lambda f, m: {},
        "itself": lambda f, m: m.update({FIRST: "."}),
    }  # fmt: skip
    for name in rng.sample(sorted(shards), 3):
        yield Case(f"{base}:shards:{name}", base, _shards(shards[name]))
