"""The tokenizer of a training's rows, a share of which is encoded with a system turn, an empty think block or an opened thought.

Every draw is a hash of the row's prompt: it depends neither on the order of the rows nor on a seed, so that a row always has the
same ids, and both answers of a pair share one draw.
"""

from __future__ import annotations

import hashlib
from functools import cached_property, partial

import attrs

from mm.core.errors import UsageError
from mm.runtime.text.messages import Message, as_dicts
from mm.runtime.text.tokenizer import Messages, Tokenizer, Tools
from mm.runtime.text.tokenizer_files import TokenizerFiles


@attrs.frozen(kw_only=True)
class RowShares:
    """Shares of rows, from 0 to 1.

    - `empty_think`: the conversations that keep the empty think blocks which their chat template writes by itself;
    - `system`: of the conversations with neither a system turn nor tools, those that get one of `system_texts` as system turn;
    - `open_thinking`: the prompts that end with an opened thought, while the others end with an empty one; None leaves all of
      them to the chat template.
    """

    empty_think: float = 1.0
    system: float = 0.0
    system_texts: tuple[str, ...] = ()
    open_thinking: float | None = None


class RowTokenizer(Tokenizer):
    """Encodes conversations and prompts as `shares` say."""

    def __init__(self, files: TokenizerFiles, shares: RowShares, *, allow_lost_fields: bool = False) -> None:
        super().__init__(files, allow_lost_fields=allow_lost_fields)
        self.shares = shares

    @classmethod
    def of(cls, tokenizer: Tokenizer, shares: RowShares, *, allow_lost_fields: bool = False) -> RowTokenizer:
        """A tokenizer with the same vocabulary and chat template. Raises UsageError if it should open thoughts and the template
        cannot."""
        if shares.open_thinking is not None:
            render = partial(tokenizer.render, [Message("user", "?")], add_generation_prompt=True)
            prompts = [render(open_thinking=switch, enable_thinking=switch) for switch in (True, False)]
            if prompts[0] == prompts[1]:
                raise UsageError(
                    f"--open-thinking {shares.open_thinking:g}: the tokenizer's chat template has no switch for thoughts "
                    "(open_thinking or enable_thinking). Leave the option out, or use another template."
                )
        return cls(tokenizer._files, shares, allow_lost_fields=allow_lost_fields)

    def encode_chat(
        self, messages: Messages, tools: Tools = None, begin: int = 0, *, empty_blocks: bool = True
    ) -> tuple[list[int], list[bool]]:
        """See `Tokenizer`."""
        prompt = messages[:begin] or messages
        keeps = empty_blocks and _draw("think", prompt) < self.shares.empty_think
        system = self._system(prompt, tools)
        return super().encode_chat([*system, *messages], tools, begin and begin + len(system), empty_blocks=keeps)

    def encode_prompt(
        self, messages: Messages, tools: Tools = None, *, thinking: bool | None = None, complete: bool = False
    ) -> list[int]:
        """See `Tokenizer`."""
        if thinking is None and self.shares.open_thinking is not None:
            thinking = _draw("open", messages) < self.shares.open_thinking
        return super().encode_prompt([*self._system(messages, tools), *messages], tools, thinking=thinking, complete=complete)

    @cached_property
    def template_digest(self) -> str:
        """As `Tokenizer.template_digest`, with the shares."""
        return hashlib.sha256(f"{super().template_digest} {self.shares}".encode()).hexdigest()[:16]

    def _system(self, prompt: Messages, tools: Tools) -> list[Message]:
        """The system turn that is put before a conversation that begins with this prompt, or none."""
        given = tools or any(message["role"] == "system" for message in as_dicts(prompt))
        if given or _draw("system", prompt) >= self.shares.system:
            return []
        texts = self.shares.system_texts
        return [Message("system", texts[int(_draw("text", prompt) * len(texts))])]


def _draw(purpose: str, messages: Messages) -> float:
    """A number in [0, 1) that follows from the messages; another one for each purpose."""
    digest = hashlib.sha256(f"{purpose} {as_dicts(messages)!r}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
