"""Copies a run's adapter, which is in PEFT's layout, and names the model that it belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

from mm.core.say import command_line
from mm.plugins.adapters.lora.files import CONFIG, STACKS, WEIGHTS, read
from mm.runtime.models.finding import run_of
from mm.runtime.models.repacker import Packing, Repacker
from mm.runtime.text.json_file import read_object

_BASE = "base_model_name_or_path"


class Peft(Repacker):
    """PEFT's folder: adapter_config.json and adapter_model.safetensors."""

    layouts: ClassVar[tuple[str, ...]] = ()
    adapter_config: ClassVar[str] = CONFIG

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """See `Repacker`. The base is what `--from` of the run has named. Raises UsageError for a folder without an adapter, and
        CheckpointError for damaged files."""
        stacks = read(folder).stacks
        for file in folder.iterdir():
            if file.name in (CONFIG, WEIGHTS, STACKS, "adapter_model.bin"):
                shutil.copy(file, out / file.name)
        config, run = read_object(folder / CONFIG), run_of(folder.parent / CONFIG)
        base = (run.manifest["settings"].get("from") if run and not run.damage else None) or config.get(_BASE)
        (out / CONFIG).write_text(json.dumps({**config, _BASE: base}, indent=2) + "\n", encoding="utf-8")
        if base:
            export = command_line("convert", str(base), "BASE", "--to", "NAME")
            packing.say(f"the base is {base}: load the adapter on an export of that, as from {export}")
        else:
            packing.say(f"the base is not known: write it into {_BASE} of {CONFIG}")
        if stacks:
            packing.say(f"{STACKS} holds updates of routed experts, which only mm reads: merge the adapter for other programs")
