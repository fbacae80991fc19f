"""The checks that every repacker must pass."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, ArchitectureSpec, ConverterSpec
from mm.core.say import silent
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.hf_files import read_tensors
from mm.runtime.models.repacker import Packing, Repacker, check_read_back
from mm.runtime.models.tensors import compare
from mm.runtime.nn.kernels import Kernels
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.suites.check import Skip
from mm.testing.suites.model import configs_of
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.tiny import tiny_model

# the error of weights in three bits; of others it is less
_FARTHEST = 0.5


class RepackerSuite(Suite):
    """The checks of a repacker, on the smallest models that the installed converters write in its layouts."""

    contract = Repacker
    declarations = ("check_record_names",)

    def __init__(
        self, spec: ConverterSpec, plugins: PluginManager, tokenizer: Tokenizer, module: str | None = None
    ) -> None:
        super().__init__(spec, module)
        self.record, self.plugins, self.tokenizer = spec, plugins, tokenizer

    @cached_property
    def repacker(self) -> Repacker:
        """An instance of the repacker."""
        repacker: Repacker = self.record.load()()
        return repacker

    @about("summary")
    def check_record_names(self) -> None:
        """The record says whether the format is read, written or both."""
        assert self.record.reads or self.record.writes, "the record has neither `reads` nor `writes`"

    @about("layouts")
    def check_layouts(self) -> str:
        """Each of the layouts is one that an installed converter writes."""
        if self.repacker.adapter_config:
            raise Skip("it packs adapters")
        written = {spec.writes for spec in self.plugins.specs(ConverterSpec) if spec.architecture}
        assert self.repacker.layouts, "`layouts` is empty: no model can be packed"
        unknown = [name for name in self.repacker.layouts if name not in written]
        assert not unknown, f"no installed converter writes {unknown[0]}; those write {', '.join(sorted(written))}"
        return ", ".join(self.repacker.layouts)

    @about("pack")
    def check_packs(self) -> str:
        """A model of each layout is packed: with a `suffix` into one file of it, and nothing is changed in the source."""
        with self._packed() as found:
            for layout, _, out in found:
                files, suffix = sorted(path.name for path in out.iterdir()), self.repacker.suffix
                own = [name for name in files if name.endswith(suffix)]
                assert not suffix or len(own) == 1, f"of {layout} it wrote {files}, not one file {suffix}"
                assert files, f"of {layout} it wrote nothing"
            return ", ".join(layout for layout, _, _ in found)

    @about("recognises")
    def check_recognises(self) -> None:
        """It recognises neither a text, a missing file and an empty folder, nor a folder that a converter reads."""
        if not self.record.reads or self.repacker.adapter_config:
            raise Skip("it reads no models")
        with tempfile.TemporaryDirectory(prefix="mm-check-") as temporary:
            text, empty, missing = (Path(temporary) / name for name in ("notes.txt", "empty", f"missing{self.repacker.suffix}"))
            text.write_text("some text", encoding="utf-8")
            empty.mkdir()
            others = {"a text file": text, "an empty folder": empty, "a file that is not there": missing}
            if self.repacker.layouts:
                converter, loaded = self._converter(self.repacker.layouts[0])
                converter.write(loaded, Path(temporary) / "layout")
                others[f"a folder of {self.repacker.layouts[0]}"] = Path(temporary) / "layout"
            for what, path in others.items():
                assert not self.repacker.recognises(path), f"it says that it reads {what}, which mm would then give to it"

    @about("unpack")
    def check_reads_back(self) -> str:
        """A model that is packed in float32 is read back as the same config and the same tensors, bit for bit."""
        if not self.record.reads:
            raise Skip("it only writes")
        with self._packed() as found:
            for layout, folder, out in found:
                path = next(out.glob(f"*{self.repacker.suffix}")) if self.repacker.suffix else out
                assert self.repacker.recognises(path), f"it does not recognise what it packed of {layout}: {path.name}"
                check_read_back(self.repacker, self._converter(layout)[0], path, folder, same_weights=True)
            return ", ".join(layout for layout, _, _ in found)

    @about("contents")
    def check_describes(self) -> str:
        """A format that only writes describes what it packed, with sizes and types, and neither a text nor a readable folder."""
        if self.record.reads or self.repacker.adapter_config:
            raise Skip("it reads models: mm info uses `values`" if self.record.reads else "it packs adapters")
        with self._packed() as found, tempfile.TemporaryDirectory(prefix="mm-check-") as temporary:
            text, empty = Path(temporary) / "notes.txt", Path(temporary) / "empty"
            text.write_text("some text", encoding="utf-8")
            empty.mkdir()
            for layout, folder, out in found:
                for path in ([out, next(out.glob(f"*{self.repacker.suffix}"))] if self.repacker.suffix else [out]):
                    contents = self.repacker.contents(path)
                    if contents is None and path == out:
                        raise Skip("it has no `contents`: mm info cannot describe what it writes")
                    assert contents is not None, f"it describes the folder, but not {path.name}"
                    assert contents.parameters > 0 and contents.types and contents.files, f"of {layout}: {contents}"
                for other in (text, empty, folder):
                    assert self.repacker.contents(other) is None, f"it describes {other.name}, which is not of its format"
            return ", ".join(layout for layout, _, _ in found)

    @about("adapter_config")
    def check_packs_adapters(self) -> str:
        """A saved adapter is packed, and the adapter reads what was packed: the same model."""
        if not self.repacker.adapter_config:
            raise Skip("it packs models")
        packed = [spec.name for spec in self.plugins.specs(AdapterSpec) if self._packs(spec)]
        assert packed, f"no installed adapter saves a file {self.repacker.adapter_config}"
        return ", ".join(packed)

    def _packs(self, spec: AdapterSpec) -> bool:
        """False if the adapter saves no file of the format."""
        with tempfile.TemporaryDirectory(prefix="mm-check-") as temporary:
            folder, out = Path(temporary) / "saved", Path(temporary) / "packed"
            folder.mkdir()
            out.mkdir()
            model, other = (tiny_model(plugins=self.plugins) for _ in range(2))
            adapter = spec.load()(spec.name, spec.config() if spec.config else None, model)
            adapter.apply()
            state = model.state_dict()
            adapter.save(folder, {name: torch.randn_like(state[name]) for name in adapter.names()})
            if not (folder / self.repacker.adapter_config).is_file():
                return False
            self.repacker.pack(folder, out, Packing(dtype=None, quantise="", say=silent))
            adapter.remove()
            adapter.apply(folder)
            spec.load()(spec.name, spec.config() if spec.config else None, other).apply(out)
            compare(dict(model.state_dict()), dict(other.state_dict()))
            return True

    @about("dequantised")
    def check_dequantises(self) -> str:
        """With every quantisation `dequantised` returns all tensors of the layout, near the original ones."""
        if not self.repacker.quantisations:
            raise Skip("it has no quantisations")
        for quantise in self.repacker.quantisations:
            with self._packed(quantise) as found:
                for layout, folder, out in found:
                    path = next(out.glob(f"*{self.repacker.suffix}")) if self.repacker.suffix else out
                    tensors = self.repacker.dequantised(path, folder)
                    if tensors is None:
                        raise Skip(f"it does not say what {quantise} makes of the weights: the user is not told the cost")
                    _check_near(read_tensors(folder), tensors, f"{quantise} of {layout}")
        return ", ".join(self.repacker.quantisations)

    @contextmanager
    def _packed(self, quantise: str = "") -> Iterator[list[tuple[str, Path, Path]]]:
        """The layouts that it accepts, each with the source's folder and the packed one. Removed at the end of the block."""
        if not self.record.writes:
            raise Skip("it only reads")
        if self.repacker.adapter_config:
            raise Skip("it packs adapters")
        if self.repacker.always_quantised and not quantise:
            quantise = self.repacker.quantisations[0]
        with tempfile.TemporaryDirectory(prefix="mm-check-") as temporary:
            found, refused = [], []
            for layout in self.repacker.layouts:
                folder, out = Path(temporary) / f"{layout}-source", Path(temporary) / f"{layout}-packed"
                converter, loaded = self._converter(layout)
                converter.write(loaded, folder)
                if reason := self.repacker.refusal(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
                    refused.append(reason)
                    continue
                out.mkdir()
                before = _contents(folder)
                self.repacker.pack(folder, out, Packing(dtype="fp32", quantise=quantise, say=silent))
                changed = sorted(dict(before.items() ^ _contents(folder).items()))
                assert not changed, f"it changes {changed[0]} of the folder that it packs, which is only to be read"
                found.append((layout, folder, out))
            assert found, f"it refuses the smallest model of every layout: {refused[0]}"
            yield found

    def _converter(self, layout: str) -> tuple[Converter, LoadedModel]:
        """The converter that writes the layout, and the smallest model that it can write."""
        spec = next(s for s in self.plugins.specs(ConverterSpec) if s.architecture and s.writes == layout)
        converter: Converter = self.plugins.load(ConverterSpec, spec.name)()
        architecture = self.plugins.get(ArchitectureSpec, spec.architecture)
        for config in configs_of(architecture).values():
            config = attrs.evolve(config, vocab_size=self.tokenizer.vocab_size)
            try:
                converter.write_config(config, self.tokenizer)
            except Unsupported:
                continue
            model = architecture.load()(config, Kernels()).eval()
            return converter, LoadedModel(architecture.name, config, model, self.tokenizer)
        raise AssertionError(f"no preset of {architecture.name} can be written as {layout}")


def _check_near(original: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise AssertionError for a tensor that is missing or new, or further from the original than any rounding leaves it."""
    wrong = sorted(original.keys() ^ found.keys())
    assert not wrong, f"{what}: {wrong[0]} is {'missing' if wrong[0] in original else 'not a tensor of the layout'}"
    for name, tensor in original.items():
        shape = tuple(found[name].shape)
        assert shape == tuple(tensor.shape), f"{what}: {name} has shape {shape}, not {tuple(tensor.shape)}"
        error = float((found[name].float() - tensor).norm() / tensor.norm().clamp(min=1e-9))
        assert error < _FARTHEST, f"{what}: {name} differs from the original by {error:.0%} of its norm"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
