"""The options of generating text, for the command line, the Python API and evaluation. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Attribute, fields, fields_dict, frozen

from mm.core.config.sections import Section
from mm.core.errors import UsageError, close_match
from mm.core.layers import argument_layer
from mm.core.options import option
from mm.runtime.generation.engine import Sampling
from mm.runtime.text.messages import Message, last_turns, with_system


def _no_empty_text(config: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    if "" in value:
        raise ValueError(f"'{attribute.name}' has an empty text, which would end every completion at once")


@frozen(kw_only=True)
class AnswerOptions:
    """The options that generation and evaluation share: how answers are drawn, where they end, and what the model reads of a
    conversation. The defaults change nothing."""

    min_p: float = option(
        0.0, help="Drop tokens less likely than this share of the likeliest one's probability; 0 is off.", within="[0, 1]"
    )
    repetition_penalty: float = option(
        1.0, help="Divides positive and multiplies negative logits of tokens in the prompt or the answer; 1 is off.",
        within="(0, inf)",
    )  # fmt: skip
    presence_penalty: float = option(
        0.0, help="Subtracted from the logits of tokens that are in the answer already; 0 is off.", within="[-2, 2]"
    )
    frequency_penalty: float = option(
        0.0, help="Subtracted from a token's logit for each time that the answer has it already; 0 is off.", within="[-2, 2]"
    )
    stop: tuple[str, ...] = option(
        (), help="Text that ends an answer and is not part of it; may be given several times.", validator=_no_empty_text
    )
    system: str = option("", help="A system message before the conversation.")
    history: int = option(
        0, help="Turns of the user, with what follows each, that the model reads, the present one included; 0: all.",
        within="[0, inf)",
    )  # fmt: skip

    def sampling(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """The settings of drawing tokens, with these penalties."""
        return Sampling(
            temperature=temperature, top_p=top_p, top_k=top_k, min_p=self.min_p, repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
        )  # fmt: skip

    def messages(self, conversation: Sequence[Message | Mapping[str, Any]]) -> list[Message | Mapping[str, Any]]:
        """The messages that the model reads: the system message, and the last `history` turns of the user with the messages that
        follow each. Raises UsageError if `system` is given and the conversation has a system message of its own."""
        return last_turns(with_system(conversation, self.system) if self.system else conversation, self.history)


DEFAULTS = AnswerOptions()
# the options of draws, with the value that switches each off
_OFF = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0}


@frozen(kw_only=True)
class GenerationOptions(AnswerOptions):
    """The options of `TextModel.generate`, `mm generate` and `mm chat`."""

    max_new_tokens: int = option(256, help="Longest answer, in tokens.", within="[1, inf)")
    temperature: float = option(0.7, help="Sampling temperature; 0 always takes the likeliest token.", within="[0, inf)")
    top_p: float = option(0.9, help="Draw from the likeliest tokens whose probabilities sum to this; 1 is off.", within="(0, 1]")
    top_k: int = option(0, help="Draw from this many of the likeliest tokens; 0 is off.", within="[0, inf)")
    seed: int = option(0, help="Seed of the draws.", within="(-inf, inf)")
    thinking: bool | None = option(None, help="Open a think block, or close it at once; by default the model decides.")

    def __attrs_post_init__(self) -> None:
        if not self.temperature and (unused := self._of_draws()):
            raise ValueError(
                f"'{unused[0]}' has no effect at temperature 0, which always takes the likeliest token: leave it out, or choose "
                "a temperature above 0"
            )

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of `TextModel.generate`."""
        return {field.name: getattr(self, field.name) for field in fields(GenerationOptions)}

    def of_conversations(self) -> list[str]:
        """The names of the given options that have an effect on conversations only, not on the continuation of a text."""
        return [name for name in ("system", "history") if getattr(self, name)] + ["thinking"] * (self.thinking is not None)

    def _of_draws(self) -> list[str]:
        """The names of the given options that have an effect on draws only."""
        given = ((name, getattr(self, name), value) for name, value in _OFF.items())
        defaults = fields_dict(GenerationOptions)
        return [name for name, value, off in given if value not in (off, defaults[name].default)]


def read_options(given: Mapping[str, Any]) -> GenerationOptions:
    """The options from keyword arguments. Raises UsageError for an unknown name and a value out of range."""
    section = Section(name="generate", config=GenerationOptions)
    known = [option.key for option in section.options]
    for name in given:
        if name not in known:
            raise UsageError(f"Generation has no option {name!r}.{close_match(name, known)}")
    return section.read([argument_layer(given)])
