"""The Hugging Face folder layout of a tokenizer, so that any program of the field loads what is written here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


@attrs.frozen(kw_only=True)
class TokenizerFiles:
    """What a folder holds. `special` maps `bos_token`, `eos_token`, `pad_token` to their spelling, where given."""

    backend: Backend
    template: str
    special: Mapping[str, str]
    config: Mapping[str, Any] = attrs.field(factory=dict)


def read_folder(folder: Path) -> TokenizerFiles:
    """Read a tokenizer. Raises UsageError when the folder is not one."""
    from tokenizers import Tokenizer as Backend

    path = folder / TOKENIZER
    if not path.is_file():
        raise UsageError(f"{folder} is not a tokenizer folder: it has no {TOKENIZER}.")
    config = _json(folder / CONFIG)
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise UsageError(f"{path}: {error}") from error
    return TokenizerFiles(backend=backend, template=_template(folder, config), special=_special(folder, config), config=config)


def write_folder(folder: Path, files: TokenizerFiles) -> None:
    """Write a tokenizer; files of the same names are replaced, others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    files.backend.save(str(folder / TOKENIZER))
    added = files.backend.get_added_tokens_decoder()
    config = {key: value for key, value in files.config.items() if key != "auto_map"} | {
        # the name that transformers 4.x knows; 5.x reads it too and ignores what the decoder list repeats
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(index): _added(added[index]) for index in sorted(added)},
        **files.special,
    }
    config.setdefault("clean_up_tokenization_spaces", False)
    config.setdefault("model_max_length", 32768)
    config.pop("chat_template", None)
    if files.template:
        # The file is what transformers reads since 4.43; older programs look into the configuration.
        config["chat_template"] = files.template
        (folder / TEMPLATE).write_text(files.template, encoding="utf-8", newline="\n")
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8", newline="\n")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected a JSON object.")
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        template = next((t["template"] for t in template if t.get("name") == "default"), "")
    return str(template)


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    settings = {**_json(folder / "special_tokens_map.json"), **config}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _added(token: Any) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}
