"""The checks that every converter must pass."""

from __future__ import annotations

import re
import tempfile
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mm.core.errors import CheckpointError
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.tensors import compare, named_tensors
from mm.runtime.nn.batch import pack
from mm.testing.suites.author import place_of_definition
from mm.testing.suites.check import Mistake, Skip
from mm.testing.suites.converter_config import ConverterConfigSuite
from mm.testing.suites.running import about
from mm.testing.suites.tensors import assert_near, documents


class ConverterSuite(ConverterConfigSuite):
    """The checks of a converter; see `ConverterConfigSuite` for the arguments."""

    @cached_property
    def theirs(self) -> dict[str, Tensor]:
        """The model's tensors under the format's names."""
        return self.converter.rules(self.config).to_theirs(named_tensors(self.loaded.model))

    @about("rules")
    def check_table_round_trip(self) -> str:
        """Every tensor of the model has a rule, and is equal after it was mapped to the format's name and back, bit for bit."""
        own, table = named_tensors(self.loaded.model), self.converter.rules(self.config)
        try:
            back = table.to_ours(self.theirs)
        except CheckpointError as error:
            if error.__cause__ is not None:  # an exception of a rule's function
                raise
            raise AssertionError(f"the rules do not fit the model: {error}") from error
        for name in (name for name, tensor in own.items() if not torch.equal(tensor, back[name])):
            rule = next(rule for rule in table.rules if re.fullmatch(re.sub(r"{\w+}", r"\\d+", rule.ours), name))
            most = float((own[name] - back[name]).abs().max())
            told = f"to_ours of the rule {rule} is not the inverse of its to_theirs: {name} differs by {most:.2g} after both"
            raise Mistake(told, place_of_definition(rule.to_ours) if self.author.owns(rule.to_ours.__module__ or "") else "")
        return f"{len(own)} tensors"

    @about("rules")
    def check_missing_tensor_is_refused(self) -> None:
        """A missing tensor raises CheckpointError with its name."""
        self.require("check_table_round_trip")
        name = sorted(self.theirs)[0]
        self._assert_refused({k: v for k, v in self.theirs.items() if k != name}, name)

    @about("rules")
    def check_extra_tensor_is_refused(self) -> None:
        """A tensor that the table does not have raises CheckpointError with its name."""
        self.require("check_table_round_trip")
        self._assert_refused({**self.theirs, "surplus.weight": torch.zeros(2)}, "surplus.weight")

    @about("rules")
    def check_misshapen_tensor_is_refused(self) -> None:
        """A tensor of another shape, or a transposed one, raises CheckpointError with its name."""
        self.require("check_table_round_trip")
        for name, tensor in self.theirs.items():
            turned = tensor.mT if tensor.dim() > 1 and tensor.shape != tensor.mT.shape else torch.zeros(3)
            for wrong in (torch.zeros(3, 1, 1, 1), turned):
                if wrong.shape != tensor.shape:
                    self._assert_refused({**self.theirs, name: wrong}, name)

    @about("read", "write")
    def check_folder_round_trip(self) -> str:
        """A written folder reads back as the same config and tensors."""
        if not self.record.writes:
            raise Skip("the converter only reads")
        for check in ("check_config_round_trip", "check_table_round_trip"):
            self.require(check)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "out"
            try:
                self.converter.write(self.loaded, folder)
                _, state = self.converter.read(folder)
            except (CheckpointError, Unsupported) as error:
                told = re.sub(rf"{re.escape(temporary)}/[^/\s:]+/?", "", str(error))
                raise AssertionError(f"the folder that was written cannot be read: {told}") from error
            compare(named_tensors(self.loaded.model), state)
            return ", ".join(sorted(path.name for path in folder.iterdir()))

    @about("write_config", "rules")
    def check_transformers_computes_the_same(self) -> str:
        """If transformers has the class, it loads the folder and computes the same logits."""
        if not self.record.writes:
            raise Skip("the converter only reads")
        self.require("check_folder_round_trip")
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
            self.converter.rules(self.config).to_ours(state)
        except CheckpointError as error:
            assert name in str(error), f"the error does not name {name}: {error}"
            return
        raise AssertionError("it was accepted")
