"""The checks of a tracker, and of the callbacks that a plugin adds to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mm.core.callback import Callback
from mm.core.errors import UsageError
from mm.core.records import TrackerSpec
from mm.core.run import Run
from mm.core.workspace import RunFolder
from mm.runtime.nn.model import Model
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.suites.author import Author
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.training import UnitStore
from mm.testing.suites.watching import WatchingChecks


class TrackerSuite(WatchingChecks, Suite):
    """The checks of a tracker, in a run's folder below `folder`. `make_model()` makes the model, `store` has the rows."""

    contract = Callback

    def __init__(
        self, spec: TrackerSpec, folder: Path, make_model: Callable[[], Model], store: UnitStore, tokenizer: Tokenizer,
        module: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, module)
        self.folder, self.make_model, self.store, self.tokenizer = folder / "runs" / "checked", make_model, store, tokenizer
        self.folder.mkdir(parents=True)

    def callbacks(self) -> list[Callback]:
        """A new tracker with its default settings. Raises Skip if a package that it needs is missing."""
        try:
            return [self.spec.load()(self.spec.config() if self.spec.config else None, RunFolder(self.folder))]
        except UsageError as error:
            raise Skip(str(error)) from None

    @about("on_log", "__init__")
    def check_records(self) -> None:
        """It overrides `on_log` or `on_evaluate`, which are given the figures."""
        self.require("check_names")
        cls: Any = self.spec.load()
        has = [name for name in ("on_log", "on_evaluate") if getattr(cls, name) is not getattr(Callback, name)]
        assert has, "it overrides neither on_log nor on_evaluate, so that it is given no figures"


class CallbackSuite(WatchingChecks):
    """The checks of the callbacks that the hook of a module gives for a run."""

    first = ("check_hook",)

    def __init__(
        self, plugin: ModuleType, run: Run, folder: Path, make_model: Callable[[], Model], store: UnitStore, tokenizer: Tokenizer
    ) -> None:
        super().__init__(Author(plugin.__name__))
        self.plugin, self.training_run, self.folder = plugin, run, folder
        self.make_model, self.store, self.tokenizer = make_model, store, tokenizer

    def subjects(self, names: tuple[str, ...]) -> list[Any]:
        """See `Checks`: the members of the callbacks' classes, the classes, the hook."""
        try:
            classes = [type(callback) for callback in self.callbacks()]
        except Exception:
            classes = []
        members = [self.author.defines(cls, name) for cls in classes for name in names]
        return [value for value in (*members, *classes, self.plugin.mm_callbacks) if value is not None]

    def callbacks(self) -> list[Callback]:
        """The callbacks of the hook for the run. Raises Skip if there are none."""
        hook = self.plugin.mm_callbacks
        found = list(hook(self.training_run) if hook.__code__.co_argcount else hook())
        if not found:
            raise Skip("mm_callbacks gives no callback for a tiny training")
        return found

    def check_hook(self) -> str:
        """`mm_callbacks` gives `Callback` objects for a run, new ones for each."""
        first, second = self.callbacks(), self.callbacks()
        for callback in first:
            assert isinstance(callback, Callback), f"it gives a {type(callback).__name__}, not a mm.contracts.Callback"
        assert not {id(one) for one in first} & {id(other) for other in second}, "two runs of a process get the same object"
        return ", ".join(type(callback).__name__ for callback in first)
