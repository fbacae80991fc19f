"""Episodes: turns of the assistant with the results of its tool calls between them, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import attrs

from mm.runtime.generation.completion_text import complete_texts
from mm.runtime.text.messages import Message
from mm.runtime.text.replies import Call, read_calls, transcript

if TYPE_CHECKING:
    from mm.runtime.generation.engine import Completion, Engine, Request, Tool
    from mm.runtime.text.tokenizer import Tokenizer

MAX_TURNS = 3
MAX_TOTAL_TOKENS = 2500
_LONGEST_TAG = 16  # tokens of </think> and the blank line after it, if each byte is a token


@attrs.define(eq=False, kw_only=True)
class Episode:
    """A conversation of a model with its tools.

    `ids` are all tokens, those of the prompt first. They are only ever appended to, so that each turn continues a sequence
    that the engine's cache holds. `turns` are the texts of the model's turns; `results` are the results of the calls in each
    turn but the last.
    """

    ids: list[int]
    turns: list[str] = attrs.field(factory=list)
    results: list[list[str]] = attrs.field(factory=list)
    finish_reason: str = ""

    @property
    def text(self) -> str:
        """All turns and results as one transcript."""
        return transcript(self.turns, self.results)

    def extend(self, completion: Completion, text: str) -> None:
        """Append a turn that the model generated."""
        self.ids += completion.ids
        self.turns.append(text)
        self.finish_reason = completion.finish_reason

    def observe(self, ids: Iterable[int]) -> None:
        """Append tokens that the model reads but did not generate, such as the results of its calls."""
        self.ids += ids


E = TypeVar("E", bound=Episode)


@attrs.frozen(kw_only=True)
class EpisodeRunner:
    """Runs episodes with an engine and tools. An episode has at most `max_turns` turns and `max_total_tokens` token ids.

    A text of `stop` ends a turn and is not part of it. The tokens of such a turn are those of its text and the end token, not the
    drawn ones, so that the next turn continues what a conversation looks like.
    """

    engine: Engine
    tokenizer: Tokenizer
    tools: Mapping[str, Tool]
    max_turns: int = MAX_TURNS
    max_total_tokens: int = MAX_TOTAL_TOKENS
    stop: tuple[str, ...] = ()

    def run(
        self,
        episodes: Sequence[E],
        request: Callable[[E, int], Request],
        on_turn: Callable[[int], None] = lambda active: None,
    ) -> None:
        """Run every episode until a turn calls no tool, or until a bound is reached and `finish_reason` is "length" or "turns".

        All episodes take their next turn together. `request` returns the engine's request for an episode and a turn (from 0);
        `on_turn` is called before each turn with the number of episodes that take it.
        """
        # imported here: declarations import this module, and checking calls against schemas is slow to import
        from mm.runtime.generation.tool_use import take_turns

        thinking = {id(episode): self._thinking(episode) for episode in episodes}

        def generate(active: Sequence[E], turn: int) -> list[list[Call]]:
            on_turn(len(active))
            return self._generate(active, [self._within_bound(request(episode, turn)) for episode in active])

        def add_results(episode: E, results: list[str]) -> bool:
            return self._add_results(episode, results, thinking[id(episode)])

        for episode in take_turns(episodes, generate, add_results, self.tools, self.max_turns):
            episode.finish_reason = "turns"

    def _within_bound(self, request: Request) -> Request:
        room = max(0, self.max_total_tokens - len(request.ids))
        return attrs.evolve(request, max_new_tokens=min(request.max_new_tokens, room))

    def _generate(self, episodes: Sequence[Episode], requests: Sequence[Request]) -> list[list[Call]]:
        """Append each episode's next turn. Returns the calls in each; a turn that was cut off has none."""
        completed = complete_texts(self.engine, self.tokenizer, requests, self.stop)
        for episode, request, (completion, text) in zip(episodes, requests, completed, strict=True):
            if self.stop and completion.finish_reason == "stop" and completion.ids[-1] not in request.stop:
                ids = (*self.tokenizer.encode(text, plain=True), self.tokenizer.eos_id)
                completion = attrs.evolve(completion, ids=ids, logprobs=())
            episode.extend(completion, text)
        return [read_calls(episode.turns[-1]) if episode.finish_reason == "stop" else [] for episode in episodes]

    def _thinking(self, episode: Episode) -> bool | None:
        """True if an episode's prompt ends with an opened thought, False if with a closed one, None if with neither: its later
        turns begin in the same way."""
        end = self.tokenizer.decode(episode.ids[-_LONGEST_TAG:], skip_special=False).rstrip()
        return True if end.endswith("<think>") else False if end.endswith("</think>") else None

    def _add_results(self, episode: Episode, results: list[str], thinking: bool | None) -> bool:
        """Append the results of an episode's calls. Returns False if that leaves no room for another turn."""
        observed = self.tokenizer.encode_reply([Message("tool", result) for result in results], thinking)
        if len(episode.ids) + len(observed) >= self.max_total_tokens:
            episode.finish_reason = "length"
            return False
        episode.results.append(results)
        episode.observe(observed)
        return True
