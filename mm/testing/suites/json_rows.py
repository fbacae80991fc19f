"""JSON objects for the checks of formats: rows that a format reads, and every way in which a row can be another one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mm.testing.suites.rows import LAYOUTS, ROWS

# one value of every JSON type, empty and not; a file from elsewhere may have any of them under any key
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**70, 1.5, "", "a text", "\ud800", [], [None], ["a"], [1, [2]], [{}], [{"role": "user"}],
    [{"role": 1, "content": None}], {}, {"a": None}, {"a": {"b": [1]}}, {"": 0},
)  # fmt: skip
Json = Mapping[str, Any]


def known(rows: Iterable[Json]) -> list[Json]:
    """`rows`, those of the built-in kinds, and those of other layouts."""
    return [*rows, *(row for kind in ROWS.values() for row in kind), *LAYOUTS]


def made_of(keys: Iterable[str]) -> list[Json]:
    """Rows with one, two and all of `keys`, with a text or a conversation under each."""
    names = sorted(keys)
    chosen = [*((name,) for name in names), *itertools.combinations(names, 2), tuple(names)]
    values = ("a text", ROWS["chat"][0]["messages"])
    few = [dict(zip(some, pair, strict=True)) for some in chosen[:-1] for pair in itertools.product(values, repeat=len(some))]
    return [*few, *({name: value for name in chosen[-1]} for value in values)]


def mutations(row: Json) -> Iterator[Json]:
    """The row with each value replaced by every one of `VALUES`, and with each key left out."""
    for name in row:
        yield {key: value for key, value in row.items() if key != name}
        yield from ({**row, name: value} for value in VALUES)


def any_objects(keys: Iterable[str], rows: Iterable[Json]) -> Iterator[Json]:
    """JSON objects of every shape: none of the keys, each key alone with every value, and the mutations of rows."""
    yield {}
    for name in ("", "a", "text", "messages", *sorted(keys)):
        yield from ({name: value} for value in VALUES)
    for row in rows:
        yield from mutations(row)


class WatchedRow(dict[str, Any]):
    """A row that notes in `asked` the keys that it is asked for; all of them if it is gone through."""

    def __init__(self, row: Json) -> None:
        super().__init__(row)
        self.asked = set[str]()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        self.asked.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            self.asked.add(key)
            yield key

    def items(self) -> Any:
        """As a dict's."""
        self.asked.update(super().__iter__())
        return super().items()
