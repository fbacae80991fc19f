"""Episodes: turns of the assistant and, between them, the results of the tools that it calls. Token ids in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import attrs

from mm.runtime.text.messages import Message
from mm.runtime.text.replies import Call, read_calls, transcript

if TYPE_CHECKING:
    from mm.runtime.generation.engine import Completion, Engine, Request, Tool
    from mm.runtime.text.tokenizer import Tokenizer

MAX_TURNS = 3
MAX_TOTAL_TOKENS = 2500


@attrs.define(eq=False, kw_only=True)
class Episode:
    """`ids` are all its tokens, the prompt first; they only ever grow at their end, so that each turn continues what the
    engine's cache holds. `results` has what the calls of each turn gave, for every turn but the last."""

    ids: list[int]
    turns: list[str] = attrs.field(factory=list)
    results: list[list[str]] = attrs.field(factory=list)
    finish_reason: str = ""

    @property
    def text(self) -> str:
        """All turns and results as one text."""
        return transcript(self.turns, self.results)

    def extend(self, completion: Completion, text: str) -> None:
        """Append a turn that was drawn."""
        self.ids += completion.ids
        self.turns.append(text)
        self.finish_reason = completion.finish_reason

    def observe(self, ids: Iterable[int]) -> None:
        """Append tokens that came from elsewhere: they are read, not drawn."""
        self.ids += ids


E = TypeVar("E", bound=Episode)


@attrs.frozen(kw_only=True)
class Player:
    """Plays episodes with an engine and tools, within `max_turns` of the assistant and `max_total_tokens` of ids."""

    engine: Engine
    tokenizer: Tokenizer
    tools: Mapping[str, Tool]
    max_turns: int = MAX_TURNS
    max_total_tokens: int = MAX_TOTAL_TOKENS

    def play(
        self,
        episodes: Sequence[E],
        request: Callable[[E, int], Request],
        on_turn: Callable[[int], None] = lambda going: None,
    ) -> None:
        """Let every episode take turns until it stops calling, or reaches a limit: `finish_reason` is then "length" or
        "turns". All take their next turn together.

        `request(episode, turn)` is the engine's request; `on_turn` is called before each turn with the number of episodes that
        take it.
        """

        # here, for authors' declarations import this module, and checking calls against schemas is slow to import
        from mm.runtime.generation.tool_use import take_turns

        def draw(going: Sequence[E], turn: int) -> list[list[Call]]:
            on_turn(len(going))
            return self._draw(going, [self._fitting(request(episode, turn)) for episode in going])

        for episode in take_turns(episodes, draw, self._answer, self.tools, self.max_turns):
            episode.finish_reason = "turns"

    def _fitting(self, asked: Request) -> Request:
        room = max(0, self.max_total_tokens - len(asked.ids))
        return attrs.evolve(asked, max_new_tokens=min(asked.max_new_tokens, room))

    def _draw(self, episodes: Sequence[Episode], requests: Sequence[Request]) -> list[list[Call]]:
        """The calls of each episode's next turn; a turn that was cut off calls nothing."""
        for episode, completion in zip(episodes, self.engine.generate(requests), strict=True):
            episode.extend(completion, self.tokenizer.decode(completion.ids))
        return [read_calls(episode.turns[-1]) if episode.finish_reason == "stop" else [] for episode in episodes]

    def _answer(self, episode: Episode, results: list[str]) -> bool:
        observed = self.tokenizer.encode_reply([Message("tool", result) for result in results])
        if len(episode.ids) + len(observed) >= self.max_total_tokens:
            episode.finish_reason = "length"
            return False
        episode.results.append(results)
        episode.observe(observed)
        return True
