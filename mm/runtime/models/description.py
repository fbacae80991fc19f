"""A model folder, ours or foreign, without its weights: its format, architecture and config. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mm.core.configs import ArchitectureConfig
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec, ConverterSpec
from mm.runtime.models.config_files import CONFIG, read_config, saved_config, text_of
from mm.runtime.models.hf_files import reader
from mm.runtime.models.provenance import naming_package
from mm.runtime.text.tokenizer import Tokenizer

NATIVE = "native"


@attrs.frozen(kw_only=True)
class Described:
    """A model folder without its weights. `format` is the name of the `converter` (an instance, None for our own layout)
    that reads it, or "native"; `values` is its config.json."""

    format: str
    architecture: ArchitectureSpec
    config: ArchitectureConfig
    values: Mapping[str, Any]
    converter: Any = None


def describe(plugins: PluginManager, folder: Path) -> Described:
    """The architecture and config of a model folder. Raises UsageError if nothing reads it, CheckpointError for a damaged
    config."""
    values = read_config(folder)
    if values.get("model_type") != "mm":
        return describe_values(plugins, folder, values)
    path = folder / CONFIG
    with naming_package(plugins, folder, values.get("packages")):
        architecture = plugins.get(ArchitectureSpec, text_of(values, "architecture", path))
    config: ArchitectureConfig = saved_config(architecture.config, values.get("config"), path)
    return Described(format=NATIVE, architecture=architecture, config=config, values=values)


def describe_values(plugins: PluginManager, path: Path, values: Mapping[str, Any]) -> Described:
    """The same of a foreign model with these values of config.json; `path` is named in errors."""
    foreign = reader(plugins, path, values)
    converter: Any = plugins.load(ConverterSpec, foreign.name)()
    architecture = plugins.get(ArchitectureSpec, foreign.architecture)
    config: ArchitectureConfig = converter.config_from(values, path)
    return Described(format=foreign.name, architecture=architecture, config=config, values=values, converter=converter)


def tokenizer_facts(folder: Path) -> dict[str, Any] | None:
    """The fingerprint, the number of ids and the template's digest of the tokenizer in a folder; None if there is none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(folder)
    return {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "template": tokenizer.template_digest}
