"""Reading and writing of a tokenizer folder in the Hugging Face layout, which other programs can load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import UsageError
from mm.runtime.text.json_file import check_regular, read_object, read_text
from mm.runtime.text.tokenizer_limits import check_limits, native_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_LARGEST = 2**28  # bytes of tokenizer.json; the largest in use have 40 MB


@attrs.frozen(kw_only=True)
class TokenizerFiles:
    """The contents of a tokenizer folder. `special` maps those of `bos_token`, `eos_token` and `pad_token` that the folder
    names to their spelling; `config` is tokenizer_config.json."""

    backend: Backend
    template: str
    special: Mapping[str, str]
    config: Mapping[str, Any] = attrs.field(factory=dict)


def read_folder(folder: Path) -> TokenizerFiles:
    """Read a tokenizer folder. Raises UsageError if it is not one, or if a file is damaged."""
    from tokenizers import Tokenizer as Backend

    path = folder / TOKENIZER
    try:
        check_regular(path, _LARGEST)
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a tokenizer folder: it has no {TOKENIZER}.") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}.") from None
    config = _json(folder / CONFIG)
    with native_errors(str(path)):
        backend = Backend.from_file(str(path))
        check_limits(backend)
    return TokenizerFiles(backend=backend, template=_template(folder, config), special=_special(folder, config), config=config)


def write_folder(folder: Path, files: TokenizerFiles) -> None:
    """Write a tokenizer folder. Files of the same names are replaced, others are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    # written here, since the library's own `save` raises a bare Exception when the disk is full
    (folder / TOKENIZER).write_text(files.backend.to_str(pretty=True), encoding="utf-8", newline="\n")
    added = files.backend.get_added_tokens_decoder()
    config = {key: value for key, value in files.config.items() if key != "auto_map"} | {
        # the class name of transformers 4.x, which 5.x accepts too; 5.x ignores `added_tokens_decoder`
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(index): _added(added[index]) for index in sorted(added)},
        **files.special,
    }
    config.setdefault("clean_up_tokenization_spaces", False)
    config.setdefault("model_max_length", 32768)
    config.pop("chat_template", None)
    if files.template:
        # transformers since 4.43 reads the file; older programs read the key in the configuration
        config["chat_template"] = files.template
        (folder / TEMPLATE).write_text(files.template, encoding="utf-8", newline="\n")
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8", newline="\n")


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error}).") from None


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    try:
        return read_text(folder / TEMPLATE)
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise UsageError(f"{folder / TEMPLATE}: {error}.") from None
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template", "") if named else ""
    if not isinstance(template, str):
        raise UsageError(f"{folder / CONFIG}: 'chat_template' is not a text.")
    return template


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    special = {}
    settings = {**_json(folder / "special_tokens_map.json"), **config}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    return special


def _added(token: Any) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}
