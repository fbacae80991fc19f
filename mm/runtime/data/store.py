"""Stores of encoded rows, read through memory maps."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from mm.core.errors import MMError
from mm.runtime.data.cache_files import ARRAYS, LEARN, ROWS, TOKENS, VALUE, StoreInfo, read_array, read_map
from mm.runtime.data.source import Format, Position
from mm.runtime.text.rows import Row

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Tokens, Unit


class Store(ABC):
    """Encoded rows as units: sequences that stay together in a micro-batch (see `mm.runtime.nn.batch.Unit`).

    `lengths` (units,) int64: the tokens of each unit. `hashes` (units,) uint64: equal for units of equal rows. `digest`
    identifies the content and its encoding.
    """

    digest: str
    info: StoreInfo
    lengths: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Unit:
        return self.unit(index)

    @abstractmethod
    def unit(self, index: int) -> Unit:
        """The unit with copies of its tensors. The fields of each sequence have `learn`; `row_index` is `index`."""

    @abstractmethod
    def position(self, index: int) -> Position:
        """The position of the unit's row in its source, for messages."""

    @abstractmethod
    def row(self, index: int) -> Row:
        """The typed row of the unit. Raises MMError for kinds of row whose JSON is not kept in the store."""


class TokenStore(Store):
    """The rows of one source, in a folder that `build_or_open` wrote. `format` returns a format by its name."""

    def __init__(self, folder: Path, info: StoreInfo, format: Callable[[str], Format]) -> None:
        self.folder, self.info, self.digest, self._format = folder, info, folder.name, format
        self._arrays = {name: read_array(folder, name) for name in ARRAYS}
        self._sequence_starts, self._unit_starts = self._arrays["sequence_starts"], self._arrays["unit_starts"]
        values = [Path(name).stem for name in info.checks if name.startswith(VALUE)]
        self._values = {name.removeprefix(VALUE): read_array(folder, name) for name in values}
        self.hashes = self._arrays["hashes"]
        self.lengths = np.diff(self._sequence_starts[self._unit_starts])
        self._tokens = read_map(folder / TOKENS, np.dtype(f"u{info.bytes_per_id}"))
        self._learn = read_map(folder / LEARN, np.dtype(np.bool_))

    def unit(self, index: int) -> Unit:
        """See `Store.unit`."""
        from mm.runtime.nn.batch import Unit

        first, last = self._unit_starts[index : index + 2].tolist()
        bounds = self._sequence_starts[first : last + 1].tolist()
        sequences = tuple(self._sequence(a, b) for a, b in pairwise(bounds))
        return Unit(sequences, row_index=index, values={name: float(values[index]) for name, values in self._values.items()})

    def position(self, index: int) -> Position:
        """See `Store.position`."""
        return Position(path=self.info.files[self._arrays["files"][index]], line=int(self._arrays["lines"][index]))

    def row(self, index: int) -> Row:
        """See `Store.row`."""
        if not self.info.kept_bytes:
            raise MMError(f"Rows of kind {self.info.row_kind!r} are not kept in the token cache, only their tokens.")
        number = int(self._arrays["unit_rows"][index])
        start, end = self._arrays["row_starts"][number : number + 2].tolist()
        with (self.folder / ROWS).open("rb") as file:
            file.seek(start)
            raw = json.loads(file.read(end - start))
        return self._format(self.info.file_formats[self._arrays["files"][index]]).parse(raw)

    def _sequence(self, start: int, end: int) -> Tokens:
        import torch

        from mm.runtime.nn.batch import Tokens

        ids = torch.from_numpy(self._tokens[start:end].astype(np.int64))
        return Tokens(ids, {"learn": torch.from_numpy(self._learn[start:end].copy())})


class ConcatStore(Store):
    """Several stores concatenated into one."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self._starts = np.cumsum([0] + [len(store) for store in stores])
        self.lengths = np.concatenate([store.lengths for store in stores])
        self.hashes = np.concatenate([store.hashes for store in stores])
        self.digest = hashlib.sha256(" ".join(store.digest for store in stores).encode()).hexdigest()[:32]

    @cached_property
    def info(self) -> StoreInfo:  # type: ignore[override]
        """The counts added up, the lists concatenated, and the names of all kinds and formats."""
        total = StoreInfo(bytes_per_id=self.stores[0].info.bytes_per_id)
        for store in self.stores:
            total.add(store.info)
        return total

    def unit(self, index: int) -> Unit:
        """See `Store.unit`."""
        store, inner = self._find(index)
        return attrs.evolve(store.unit(inner), row_index=index)

    def position(self, index: int) -> Position:
        """See `Store.position`."""
        store, inner = self._find(index)
        return store.position(inner)

    def row(self, index: int) -> Row:
        """See `Store.row`."""
        store, inner = self._find(index)
        return store.row(inner)

    def _find(self, index: int) -> tuple[Store, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.stores[number], index - int(self._starts[number])
