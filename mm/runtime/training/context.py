"""What an algorithm may use besides its models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import torch

from mm.runtime.data.source import Position
from mm.runtime.generation.scoring import Scores, score
from mm.runtime.nn.batch import Packed, Unit, pack

if TYPE_CHECKING:
    from mm.runtime.data.store import Store
    from mm.runtime.generation.engine import Engine, Reward, Tool
    from mm.runtime.text.rows import Row
    from mm.runtime.text.tokenizer import Tokenizer
    from mm.runtime.training.distributed import World


class Units(Protocol):
    """Units by number, read when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Unit: ...


@attrs.define(kw_only=True)
class Context:
    """What a run lends its algorithm.

    `max_length` is the most tokens that a row may have. `more_rows(n)` gives this rank's share of the next rows under
    the checkpointed data cursor, and `packs` micro-batches on the device by the run's token budget. `row(unit.row_index)` is
    the row that a unit was made of, for kinds that are kept, `position(unit.row_index)` where it stands, `units` are those
    of all rows by `Unit.row_index`, held-out ones too, and `data_digest` names their content; while a run is measured on
    another file, these four are that file's. `cache` is a folder for what could be computed again. An algorithm that
    generates has an `engine`, the `rewards` with their weights by name, the `tools` by name, and `log` for samples to
    read. `warn` says something once.
    """

    tokenizer: Tokenizer
    world: World
    seed: int
    more_rows: Callable[[int], list[Unit]]
    max_length: int | None = None
    row: Callable[[int], Row] = attrs.field(factory=lambda: _unkept)
    position: Callable[[int], Position] = lambda index: Position(path="rows", line=index)
    packs: Callable[[list[Unit]], list[Packed]] = lambda units: [pack(units)]
    units: Units = ()
    data_digest: str = ""
    cache: Path | None = None
    engine: Engine | None = None
    rewards: Mapping[str, tuple[Reward, float]] = attrs.field(factory=dict)
    skip_failed_rewards: bool = False
    tools: Mapping[str, Tool] = attrs.field(factory=dict)
    log: Callable[[Sequence[Mapping[str, Any]]], None] = lambda samples: None
    warn: Callable[[str], None] = lambda text: None
    _warned: set[str] = attrs.field(factory=set, init=False)

    def score(self, rows: Sequence[int], completions: Sequence[str]) -> Scores:
        """What the run's rewards say about completions; `rows` are the `unit.row_index` of their prompts. See `score`. The first
        failure of each reward that is skipped is said."""
        found = {index: self.row(index) for index in dict.fromkeys(rows)}
        places = {index: self.position(index) for index in found}
        scores = score(
            self.rewards, [found[i] for i in rows], completions,
            places=[f"{places[i].path}:{places[i].line}" for i in rows], skip_failed=self.skip_failed_rewards,
        )  # fmt: skip
        for index, failed in zip(rows, scores.failed, strict=True):
            for name, reason in failed.items():
                self._warn_of(name, f"{places[index].path}:{places[index].line}", reason)
        return scores

    def _warn_of(self, reward: str, place: str, reason: str) -> None:
        if reward not in self._warned:
            self._warned.add(reward)
            self.warn(f"reward {reward} failed on {place}: {reason}; such completions are left out")

    @contextmanager
    def reading(self, store: Store) -> Iterator[None]:
        """Inside, all that belongs to a store is another one's: that of the held-out rows."""
        now = of_store(store)
        before = {name: getattr(self, name) for name in now}
        self._set(now)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def generator(self, *key: int) -> torch.Generator:
        """A CPU generator that depends on the run's seed and `key` alone, never on rank or slot."""
        return torch.Generator().manual_seed(stable_seed(self.seed, *key))


def of_store(store: Store) -> dict[str, Any]:
    """The attributes of `Context` that belong to a store, as it has them."""
    return {"row": store.row, "position": store.position, "units": store, "data_digest": store.digest}


def _unkept(index: int) -> Row:
    raise LookupError("this run keeps no rows beside their tokens")


def stable_seed(*key: int) -> int:
    """A 63-bit seed from integers (splitmix64, Steele et al. 2014, folded over the key)."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
