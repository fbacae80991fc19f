"""The checks of a converter's config: what `write_config` writes, `read_config` reads back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from functools import cached_property
from itertools import islice
from typing import Any

import attrs
import torch

from mm.core.records import ArchitectureSpec, ConverterSpec
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.folder import LoadedModel
from mm.runtime.nn.batch import pack
from mm.runtime.nn.kernels import Kernels
from mm.runtime.nn.model import Model
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.suites.author import place_of_definition
from mm.testing.suites.check import Mistake, Skip
from mm.testing.suites.model import configs_of
from mm.testing.suites.option_values import other_configs
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite, options_of_part
from mm.testing.suites.tensors import documents

_SHAPES = ("vocab_size", "max_position_embeddings")  # of a config, which mm itself reads


class ConverterConfigSuite(Suite):
    """The checks of the config of a converter; `architecture` is the record of the architecture that its record names."""

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
    def config(self) -> Any:
        """The config of the smallest preset that the format can hold. Of a format that is only read, of the smallest preset."""
        for config in configs_of(self.architecture).values():
            config = attrs.evolve(config, vocab_size=self.tokenizer.vocab_size)
            try:
                if self.record.writes:
                    self.converter.write_config(config, self.tokenizer)
            except Unsupported:
                continue
            return config
        raise AssertionError(f"no preset of {self.architecture.name} can be written")

    @cached_property
    def loaded(self) -> LoadedModel:
        """A model with that config, with random weights everywhere."""
        return LoadedModel(self.architecture.name, self.config, self._model(self.config), self.tokenizer)

    @about("summary")
    def check_record_names(self) -> None:
        """The record names a format, and a format that can be written can also be read."""
        reads, writes = self.record.reads, self.record.writes
        assert reads or writes, "the record has neither `reads` nor `writes`"
        assert not writes or writes in reads, f"it writes {writes} but reads {', '.join(reads) or 'nothing'}"

    @about("write_config")
    def check_config_is_written(self) -> str:
        """`write_config` gives JSON values, with the record's `writes` in `architectures`."""
        if not self.record.writes:
            raise Skip("the converter only reads")
        values = self.converter.write_config(self.config, self.tokenizer)
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"write_config returns something that is not a JSON value: {error}") from None
        names = values.get("architectures")
        told = f"write_config writes architectures {names}, and the record writes {self.record.writes!r}"
        assert names == [self.record.writes], told
        return f"{len(values)} values"

    @about("read_config")
    def check_config_round_trip(self) -> str:
        """`read_config` gives the config back that `write_config` wrote, with every other value of every option too: one that a
        format cannot hold is an Unsupported of `write_config`, and never lost."""
        self.require("check_config_is_written")
        if not self.record.writes:
            raise Skip("the converter only reads")
        always, lost, tried = self._not_read_back("", self.config), set[str](), set[str]()
        for field, config in self._changed(self.config):
            lost |= self._not_read_back(field, config)
            tried.add(field)
        # some options count only beside another one, such as the settings of a rotary scaling
        for base in [config for _, config in self._changed(self.config, most=1, only=self._switches)] if lost else []:
            for field, config in self._changed(base, most=1, only=lost):
                lost -= {field} - self._not_read_back(field, config)
        lost |= always
        harmless = f"; another value, without an effect on the logits, have {', '.join(sorted(lost))}" if lost else ""
        return f"{len(tried - lost)} options are kept{harmless}"

    @property
    def _switches(self) -> set[str]:
        """The options that other ones may count beside: those with choices, and those that are off or unset."""
        options = options_of_part(self.architecture)
        return {o.field for o in options if o.info.choices or getattr(self.config, o.field) in (None, True, False)}

    def _changed(self, base: Any, *, most: int | None = None, only: Set[str] | None = None) -> Iterator[tuple[str, Any]]:
        """(field, config with another value of it) for each option (of `only`), with `most` values that the format holds."""
        presets = configs_of(self.architecture).values()
        for option in options_of_part(self.architecture):
            if only is None or option.field in only:
                given = (getattr(preset, option.field) for preset in presets)
                held = (config for config in other_configs(base, option, given) if self._written(config) is not None)
                yield from ((option.field, config) for config in islice(held, most))

    def _written(self, config: Any) -> dict[str, Any] | None:
        """The values that `write_config` writes, as JSON gives them back; None if the format cannot hold the config."""
        try:
            values: dict[str, Any] = json.loads(json.dumps(self.converter.write_config(config, self.tokenizer)))
        except Unsupported:
            return None
        return values

    def _not_read_back(self, field: str, config: Any) -> set[str]:
        """The fields (of all of them if `field` is "") that have another value when they are read back, if that has no effect.
        Raises Mistake if it has one."""
        values = self._written(config)
        assert values is not None
        what = f"of {field}={getattr(config, field)!r}" if field else "of the smallest preset"
        try:
            back = self.converter.read_config(values)
        except (Unsupported, ValueError) as error:
            reason = error.args[0] if error.args else repr(error)  # attrs' validators have more in it
            told = f"read_config refuses what write_config writes {what}: {reason}"
            raise Mistake(told, self._place("write_config")) from error
        assert type(back) is type(config), f"read_config returns a {type(back).__name__}, not a {type(config).__name__}"
        names = [field] if field else [attribute.name for attribute in attrs.fields(type(config))]
        differ = [name for name in names if getattr(back, name) != getattr(config, name)]
        for name in differ:
            if not self._computes_the_same(config, name, getattr(back, name)):
                raise self._lost(name, config, back, values)
        return set(differ)

    def _computes_the_same(self, config: Any, field: str, value: Any) -> bool:
        """True if a model with another value of a field has the same logits, and takes documents of the same length."""
        try:
            other = attrs.evolve(config, **{field: value})
        except ValueError:
            return False
        if any(getattr(other, name) != getattr(config, name) for name in _SHAPES):
            return False
        model, changed = self._model(config), self._model(other)
        own, theirs = model.state_dict(), changed.state_dict()
        if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
            return False
        changed.load_state_dict(own)
        batch = pack(documents([16], config.vocab_size))
        with torch.no_grad():
            return torch.equal(model(batch)[0], changed(batch)[0])

    def _lost(self, field: str, config: Any, back: Any, values: Mapping[str, Any]) -> Mistake:
        """The mistake that a field is not read back: of `write_config` if what it writes is not the field's value, or does not
        depend on it."""
        value, other = getattr(config, field), getattr(back, field)
        told = f"{field}={value!r} is read back as {other!r}"
        same = self._written(attrs.evolve(config, **{field: other})) if type(value) is type(other) else None
        if values.get(field, value) != value:
            return Mistake(f"{told}: write_config writes {values[field]!r}", self._place("write_config"))
        if values == same:
            cure = f"write_config does not write {field}: a value that the format cannot hold must raise Unsupported"
            return Mistake(f"{told}: {cure}", self._place("write_config"))
        return Mistake(f"{told}: read_config does not read what write_config writes of it", self._place("read_config"))

    def _model(self, config: Any) -> Model:
        model: Model = self.architecture.load()(config, Kernels()).eval()
        _randomise_vectors(model)
        return model

    def _place(self, method: str) -> str:
        return place_of_definition(self.author.defines(self.record.load(), method))


def _randomise_vectors(model: Model) -> None:
    """Set vectors to random values: norm weights are initialised to ones, which would hide swapped or omitted ones."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
