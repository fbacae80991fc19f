"""The checks that every converter must pass."""

from __future__ import annotations

import json
import tempfile
from functools import cached_property
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mm.core.errors import CheckpointError
from mm.core.records import ArchitectureSpec, ConverterSpec
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.tensors import compare, named_tensors
from mm.runtime.nn.batch import pack
from mm.runtime.nn.kernels import Kernels
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.suites.check import Skip
from mm.testing.suites.model import configs_of
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import assert_near, documents


class ConverterSuite(Suite):
    """The checks of a converter; `architecture` is the record of the architecture that the converter's record names."""

    contract = Converter
    declarations = ("check_record_names",)

    def __init__(
        self, spec: ConverterSpec, architecture: ArchitectureSpec, tokenizer: Tokenizer, module: str | None = None
    ) -> None:
        super().__init__(spec, module)
        self.record, self.architecture, self.tokenizer = spec, architecture, tokenizer

    @cached_property
    def converter(self) -> Converter:
        """An instance of the converter."""
        converter: Converter = self.record.load()()
        return converter

    @cached_property
    def loaded(self) -> LoadedModel:
        """A model of the smallest preset that the format can hold, with random weights everywhere. Of a format that is only
        read, the smallest preset."""
        for config in configs_of(self.architecture).values():
            config = attrs.evolve(config, vocab_size=self.tokenizer.vocab_size)
            try:
                if self.record.writes:
                    self.converter.write_config(config, self.tokenizer)
            except Unsupported:
                continue
            model = self.architecture.load()(config, Kernels()).eval()
            _randomise_vectors(model)
            return LoadedModel(self.architecture.name, config, model, self.tokenizer)
        raise AssertionError(f"no preset of {self.architecture.name} can be written")

    @cached_property
    def theirs(self) -> dict[str, Tensor]:
        """The model's tensors under the format's names."""
        return self.converter.rules(self.loaded.config).to_theirs(named_tensors(self.loaded.model))

    @about("summary")
    def check_record_names(self) -> None:
        """The record names a format, and a format that can be written can also be read."""
        reads, writes = self.record.reads, self.record.writes
        assert reads or writes, "the record has neither `reads` nor `writes`"
        assert not writes or writes in reads, f"it writes {writes} but reads {', '.join(reads) or 'nothing'}"

    @about("rules")
    def check_table_round_trip(self) -> str:
        """Tensors that are mapped to the format's names and back are equal, bit for bit."""
        own = named_tensors(self.loaded.model)
        compare(own, self.converter.rules(self.loaded.config).to_ours(self.theirs))
        return f"{len(own)} tensors"

    @about("rules")
    def check_missing_tensor_is_refused(self) -> None:
        """A missing tensor raises CheckpointError with its name."""
        name = sorted(self.theirs)[0]
        self._assert_refused({k: v for k, v in self.theirs.items() if k != name}, name)

    @about("rules")
    def check_extra_tensor_is_refused(self) -> None:
        """A tensor that the table does not have raises CheckpointError with its name."""
        self._assert_refused({**self.theirs, "surplus.weight": torch.zeros(2)}, "surplus.weight")

    @about("rules")
    def check_misshapen_tensor_is_refused(self) -> None:
        """A tensor of another shape raises CheckpointError with its name."""
        name = sorted(self.theirs)[0]
        self._assert_refused({**self.theirs, name: torch.zeros(3, 1, 1, 1)}, name)

    @about("read_config", "write_config", "read", "write")
    def check_folder_round_trip(self) -> str:
        """A written folder reads back as the same config and tensors, and its config.json has the record's `writes`."""
        if not self.record.writes:
            raise Skip("the converter only reads")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "out"
            loaded = self.loaded
            self.converter.write(loaded, folder)
            names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
            assert names == [self.record.writes], f"config.json has {names}, the record {self.record.writes!r}"
            config, state = self.converter.read(folder)
            assert type(config) is type(loaded.config), f"read_config returns a {type(config).__name__}"
            compare(named_tensors(loaded.model), state)
            return ", ".join(sorted(path.name for path in folder.iterdir()))

    @about("write_config", "rules")
    def check_transformers_computes_the_same(self) -> str:
        """If transformers has the class, it loads the folder and computes the same logits."""
        if not self.record.writes:
            raise Skip("the converter only reads")
        import transformers

        if not hasattr(transformers, self.record.writes):
            raise Skip(f"transformers has no {self.record.writes}")
        loaded = self.loaded
        unit = documents([16], self.tokenizer.vocab_size)[0]
        with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
            self.converter.write(loaded, Path(temporary) / "out")
            model = transformers.AutoModelForCausalLM.from_pretrained(Path(temporary) / "out", dtype=torch.float32)
            theirs = model(unit.sequences[0].ids[None]).logits[0]
            return f"largest error {assert_near(loaded.model(pack([unit]))[0], theirs, 1e-4, 'logits'):.1g}"

    def _assert_refused(self, state: dict[str, Tensor], name: str) -> None:
        try:
            self.converter.rules(self.loaded.config).to_ours(state)
        except CheckpointError as error:
            assert name in str(error), f"the error does not name {name}: {error}"
            return
        raise AssertionError("it was accepted")


def _randomise_vectors(model: torch.nn.Module) -> None:
    """Set vectors to random values: norm weights are initialised to ones, which would hide swapped or omitted ones."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
