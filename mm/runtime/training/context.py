"""The context of an algorithm: everything that it may use besides its models. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from mm.runtime.data.source import Position
from mm.runtime.generation.scoring import Scores, score

if TYPE_CHECKING:
    import torch

    from mm.runtime.data.store import Store
    from mm.runtime.generation.engine import Engine, Reward, Tool
    from mm.runtime.nn.batch import Packed, Unit
    from mm.runtime.text.rows import Row
    from mm.runtime.text.tokenizer import Tokenizer
    from mm.runtime.training.distributed import World


class Units(Protocol):
    """A sequence of units, each read when it is indexed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Unit: ...


@attrs.define(kw_only=True)
class Context:
    """The services that a run offers its algorithm.

    - `tokenizer`, `world` (the ranks: `world.sum` adds up host numbers), `seed`, and `max_length`, the most tokens of a row;
    - `more_rows(n)`: this rank's share of the next n rows; advances the position in the data, which checkpoints save;
    - `packs(units)`: micro-batches on the device, by the run's token budget, for forwards in `prepare` and `evaluate`;
    - by `unit.row_index`, held-out rows included: `row(i)`, the row that a unit was made of (for kinds of rows that are kept),
      `position(i)`, its place in the data, and `units[i]`, the unit itself. `data_digest` identifies the data. While a run is
      evaluated on another file, these four are that file's;
    - `step()`: the number of optimizer steps so far;
    - `cache`: a folder for results that could be computed again; `warn(text)` prints a line and notes it in the manifest;
    - for an algorithm that generates: the `engine`, the `rewards` with their weights and the `tools`, both by name;
      `score(rows, completions)`; `log(lines)`, which writes to rollouts.jsonl.
    """

    tokenizer: Tokenizer
    world: World
    seed: int
    more_rows: Callable[[int], list[Unit]]
    max_length: int | None = None
    row: Callable[[int], Row] = attrs.field(factory=lambda: _unkept)
    position: Callable[[int], Position] = lambda index: Position(path="rows", line=index)
    packs: Callable[[list[Unit]], list[Packed]] = attrs.field(factory=lambda: _one_pack)
    units: Units = ()
    data_digest: str = ""
    step: Callable[[], int] = lambda: 0
    cache: Path | None = None
    engine: Engine | None = None
    rewards: Mapping[str, tuple[Reward, float]] = attrs.field(factory=dict)
    skip_failed_rewards: bool = False
    tools: Mapping[str, Tool] = attrs.field(factory=dict)
    log: Callable[[Sequence[Mapping[str, Any]]], None] = lambda samples: None
    warn: Callable[[str], None] = lambda text: None
    _warned: set[str] = attrs.field(factory=set, init=False)

    def score(self, rows: Sequence[int], completions: Sequence[str]) -> Scores:
        """The scores of completions by the run's rewards; see `scoring.score`. `rows` has the `unit.row_index` of each
        completion's prompt. Warns of the first skipped failure of each reward."""
        found = {index: self.row(index) for index in dict.fromkeys(rows)}
        scores = score(
            self.rewards, [found[i] for i in rows], completions,
            places=[self.place(index) for index in rows], skip_failed=self.skip_failed_rewards,
        )  # fmt: skip
        for index, failed in zip(rows, scores.failed, strict=True):
            for name, reason in failed.items():
                self._warn_of(name, self.place(index), reason)
        return scores

    def place(self, index: int) -> str:
        """`file:line` of the row that a unit was made of, by its `row_index`."""
        position = self.position(index)
        return f"{position.path}:{position.line}"

    def _warn_of(self, reward: str, place: str, reason: str) -> None:
        if reward not in self._warned:
            self._warned.add(reward)
            self.warn(f"reward {reward} failed on {place}: {reason}; such completions are skipped")

    @contextmanager
    def reading(self, store: Store) -> Iterator[None]:
        """Inside the block, the attributes that belong to a store (see `of_store`) are those of `store`, such as that of
        --eval-data."""
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
        """A CPU generator seeded by the run's seed and `key` only, and so the same on every rank."""
        import torch

        return torch.Generator().manual_seed(stable_seed(self.seed, *key))


def of_store(store: Store) -> dict[str, Any]:
    """The attributes of `Context` that belong to a store, by name, with the store's values."""
    return {"row": store.row, "position": store.position, "units": store, "data_digest": store.digest}


def _one_pack(units: list[Unit]) -> list[Packed]:
    from mm.runtime.nn.batch import pack

    return [pack(units)]


def _unkept(index: int) -> Row:
    raise LookupError("this run keeps only the tokens of its rows")


def stable_seed(*key: int) -> int:
    """A 63-bit seed from integers: the hash splitmix64 (Steele et al. 2014), folded over the key."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
