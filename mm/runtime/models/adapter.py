"""The contract of an adapter: parameters that are trained instead of a model's own weights. Imports no torch."""

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
        """Add the adapter's parameters to the model and freeze all others.

        They are read from `saved`, a folder that `save` wrote, or newly initialised so that the model's outputs do not change.
        Raises CheckpointError if what was saved does not fit the model.
        """

    @abstractmethod
    def restart(self) -> bool:
        """Merge the adapter into the plain weights for good and start over with new parameters.

        The model's outputs do not change, and inside `off` they are then the same. Returns True if there was anything to
        merge.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the adapter's parameters. The model is then a plain one, and all its parameters are trainable."""

    @abstractmethod
    def names(self) -> frozenset[str]:
        """The names of the adapter's tensors in the model's state dict; all other names are those of the plain model."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """Inside the block, the model computes without the adapter."""

    @abstractmethod
    def merged(self) -> AbstractContextManager[None]:
        """Inside the block, the adapter is merged into the plain model's tensors and adds nothing itself. Afterwards these are
        restored bit for bit."""

    @abstractmethod
    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the adapter's `tensors`, by its `names`, into an existing folder, in a layout of the adapter's own. They may be
        copies from an earlier step."""

    def notes(self) -> list[str]:
        """Lines on how the adapter will be saved, printed when a run starts and when its finished model is written."""
        return []
