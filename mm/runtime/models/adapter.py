"""The contract of an adapter: a change to a model's weights that is trained instead of them. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    from mm.runtime.nn.model import Model


class Adapter(ABC):
    """A change to a model's weights that is trained instead of them. One object belongs to one model; `name` is that of
    its record. By default it changes the model's `adapter_targets`."""

    def __init__(self, name: str, config: Any, model: Model) -> None:
        self.name, self.config, self.model = name, config, model

    @abstractmethod
    def apply(self, saved: Path | None = None) -> None:
        """Put the adapter's parameters into the model and freeze all others: those of a folder that `save` wrote or,
        without one, new ones, with which the model answers as before. Raises CheckpointError for what does not fit."""

    @abstractmethod
    def restart(self) -> bool:
        """Put the change, where there is one, into the plain weights for good and begin anew with new parameters, with
        which the model answers as before, also inside `off`; whether there was one."""

    @abstractmethod
    def remove(self) -> None:
        """Take the adapter's parameters out again; the model is a plain one, all its parameters can be trained."""

    @abstractmethod
    def names(self) -> frozenset[str]:
        """The names of the adapter's tensors in the model's state; the other names are those of a plain model."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """Inside, the model answers as without the adapter."""

    @abstractmethod
    def merged(self) -> AbstractContextManager[None]:
        """Inside, the plain model's tensors hold the change, and the adapter adds nothing; afterwards they are bit for
        bit what they were."""

    @abstractmethod
    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the adapter's `tensors` (those of its `names`, perhaps of an earlier moment) into an existing folder, in a
        layout of its own."""

    def notes(self) -> list[str]:
        """What is said of how it will be saved, when a run starts and when the finished one stands."""
        return []
