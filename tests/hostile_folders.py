"""Model folders that were damaged in one place, by a seed: configs, tokenizers, templates, links, and `hostile_weights`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile_templates import QUICK
from hostile_weights import CANARY, CHANGES, Case, Mutation, instead, of_weights, weights, write


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "huge": 10**8, "vast": 10**18, "digits": 10**400, "negative": -1, "zero": 0, "text": "4", "empty": "", "fraction": 2.5,
    "true": True, "list": [4], "object": {"a": {"b": 1}}, "deep": _deep(40), "nan": float("nan"), "infinite": float("inf"),
    "tiny": 1e-300,
}  # fmt: skip
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "max_position_embeddings", "rms_norm_eps", "rope_theta")  # fmt: skip
EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob")
OTHERS = ("architectures", "rope_scaling", "rope_parameters", "layer_types", "tie_word_embeddings", "head_dim", "model_type",
          "hidden_act", "quantization_config", "attention_bias")  # fmt: skip


def _edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Mutation:
    def mutation(folder: Path, rng: random.Random) -> None:
        values = json.loads((folder / name).read_text())
        changed = change(values)
        (folder / name).write_text(json.dumps(values if changed is None else changed))

    return mutation


def _set(field: str, value: Any, native: bool = False) -> Mutation:
    def change(config: dict[str, Any]) -> None:
        place = config["config"] if native and field not in config else config
        place.pop(field, None) if value is ... else place.update({field: value})

    return _edit("config.json", change)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _python(folder: Path, rng: random.Random) -> None:
    code = f"import os\nos.system('touch {folder / CANARY}')\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "sitecustomize.py", "conftest.py"):
        (folder / name).write_text(code)
    _set("auto_map", {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "configuration_x.X"})(folder, rng)


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Mutation:
    return _edit("tokenizer.json", change)


def _template(source: str) -> Mutation:
    return write("chat_template.jinja", source.encode())


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors")
NODES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo, "folder": Path.mkdir, "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name), "device": lambda path: path.symlink_to("/dev/zero"), "sparse": _sparse,
}  # fmt: skip
CONTENTS = {
    "empty": b"", "list": b"[]", "number": b"3", "torn": b'{"a": ', "binary": bytes(range(256)), "deep": b"[" * 100_000,
    "surrogate": b'{"architectures": ["\\ud800"], "model_type": "\\udfff"}', "keys": b"{}",
}  # fmt: skip
GROWS = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 40}
TOKENIZERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "grows": lambda t: t.update(normalizer=GROWS),
    "grows-regex": lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 9999}),
    "prepends": lambda t: t.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6}),
    "charsmap": lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "pattern": lambda t: t.update(pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "(?:(?:a|b|[a-z ])+)+$x|(x+x+)+y"}, "behavior": "Isolated", "invert": False}),
    "pattern-torn": lambda t: t.update(pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}),
    "ids": lambda t: t["model"]["vocab"].update({"zzzz": 2**31}),
    "merges": lambda t: t["model"].update(merges=[["no", "such"]]),
    "vocab": lambda t: t["model"].update(vocab=[1, 2]),
    "model": lambda t: t.update(model={"type": "Nothing"}),
    "keys": lambda t: {},
    "added": lambda t: t["added_tokens"].append({"id": 1, "content": "", "special": True}),
    "ids-negative": lambda t: t["added_tokens"].append({"id": -5, "content": "x"}),
    "decoder": lambda t: t.update(decoder={"type": "Sequence", "decoders": "x"}),
    "nested": lambda t: t.update(normalizer=_deep(300)),
    "unigram": lambda t: t.update(model={"type": "Unigram", "unk_id": 5, "vocab": []}),
}  # fmt: skip
SETTINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no-eos": lambda c: c.update(eos_token=None), "eos-number": lambda c: c.update(eos_token=3),
    "eos-unknown": lambda c: c.update(eos_token="nowhere"),
}  # fmt: skip


FIXED: dict[str, tuple[str, Any]] = {
    "layers": ("num_hidden_layers", 10**8), "layers-within": ("num_hidden_layers", 9999), "wide": ("hidden_size", 2**20),
}  # fmt: skip


def mutation(name: str) -> Mutation:
    """The one of that name, chosen by the seed or not: of a file, of weights, of a tokenizer, or of a setting."""
    base, place, *kind = name.split(":")
    native = base == "native"
    if place in FIXED:
        return _set(*FIXED[place], native)
    if place == "weights":
        return weights(CHANGES[kind[0]])
    if place == "tokenizer":
        return _tokenizer(TOKENIZERS[kind[0]])
    if place in FILES:
        return instead(place, NODES[kind[0]])
    return _set(place, VALUES[kind[0]], native)


def cases(bases: list[str], seed: int = 0) -> Iterator[Case]:
    """All cases; which ones are of which folder is decided by the seed."""
    rng = random.Random(seed)
    for base in bases:
        native = base == "native"
        fields = [*SIZES, *(EXPERTS if "moe" in base else ()), *(() if native else OTHERS)]
        for field in fields:
            for kind in rng.sample(sorted(VALUES), 1):
                yield Case(f"{base}:{field}:{kind}", base, _set(field, VALUES[kind], native), fails=False)
        for field in rng.sample(SIZES[:6], 2):
            # the width of layers without experts, of which there are none
            unused = field == "intermediate_size" and base.endswith("moe")
            yield Case(f"{base}:{field}:missing", base, _set(field, ..., native), fails=not native and not unused)
        for name, (field, value) in FIXED.items():
            yield Case(f"{base}:{name}", base, _set(field, value, native))
        for name in rng.sample(sorted(NODES), 4):
            for file in rng.sample(FILES, 1):
                needed = file in ("config.json", "tokenizer.json")
                yield Case(f"{base}:{file}:{name}", base, instead(file, NODES[name]), fails=needed)
        for name in rng.sample(sorted(CONTENTS), 3):
            yield Case(f"{base}:config.json:{name}", base, write("config.json", CONTENTS[name]))
        yield from of_weights(base, rng)
        for name in rng.sample(sorted(TOKENIZERS), 5):
            yield Case(f"{base}:tokenizer:{name}", base, _tokenizer(TOKENIZERS[name]), fails=False)
        for name in rng.sample(sorted(QUICK), 4):
            yield Case(f"{base}:template:{name}", base, _template(QUICK[name]))
        for name, change in SETTINGS.items():
            yield Case(f"{base}:{name}", base, _edit("tokenizer_config.json", change), fails=name == "no-eos")
        yield Case(f"{base}:python", base, _python, fails=False)
