"""The models of a server by name, each with the thread that steps its engine, and adapters as models of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from mm.core.errors import MMError, UsageError, close_match
from mm.core.say import Say, silent
from mm.runtime.generation.engine import SupportsContinuous
from mm.runtime.serving.errors import Refusal
from mm.runtime.serving.loop import EngineLoop
from mm.runtime.text.wording import size_text

if TYPE_CHECKING:
    from mm.runtime.generation.text_model import TextModel
    from mm.runtime.text.tokenizer import Tokenizer

T = TypeVar("T")

# (the text that names a model, the text that names an adapter or "") -> the loaded model
Load = Callable[[str, str], "TextModel"]


@attrs.define(eq=False)
class ServedModel:
    """A model by its name. `source` is the text that names it for `mm.load`. If `adapter` names an adapter, its change is merged
    into the weights, and `base` is the name of the model without it. It is loaded at the first request."""

    name: str
    source: str
    adapter: str = ""
    base: str = ""
    created: int = attrs.field(factory=lambda: int(time.time()))
    opened: Opened | None = None
    opening: asyncio.Lock = attrs.field(factory=asyncio.Lock)


@attrs.frozen(eq=False)
class Opened:
    """A loaded model with its loop. `context` is the number of tokens that a prompt and its completion may have together, None if
    there is no such bound. Texts are encoded and templates rendered one after the other in a thread of their own, so that a
    long one does not hold up the event loop."""

    name: str
    text_model: TextModel
    loop: EngineLoop
    context: int | None
    texts: ThreadPoolExecutor = attrs.field(factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="mm-texts"))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.text_model.loaded.tokenizer

    @property
    def positions(self) -> int | None:
        """The number of tokens that the model can read where nothing is generated; None if there is no such bound."""
        return self.text_model.loaded.config.max_position_embeddings

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The result of a function that encodes or renders texts."""
        return await asyncio.get_running_loop().run_in_executor(self.texts, function)

    def close(self, reason: str) -> None:
        """End all completions with a reason; the threads end by themselves."""
        self.loop.close(reason)
        self.texts.shutdown(wait=False)

    def summary(self) -> str:
        """One line: the model's size, type, device and memory."""
        parameters = list(self.text_model.loaded.model.parameters())
        weights = sum(p.numel() * p.element_size() for p in parameters)
        dtype, device = str(parameters[0].dtype).removeprefix("torch."), self.text_model.backend.device_type
        memory = ", ".join(f"{size_text(value)} {name}" for name, value in self.text_model.backend.memory().items())
        return (
            f"{self.name}: {sum(p.numel() for p in parameters):,} parameters in {dtype} on {device}, weights "
            f"{size_text(weights)}, context {self.context or 'unbounded'}; memory {memory}"
        )


class ServedModels:
    """The models of a server. `sources` are their texts by name: the first is loaded by `start`, the others at their first
    request. `max_open` is the limit of each `EngineLoop`."""

    def __init__(self, sources: Mapping[str, str], load: Load, *, max_open: int, say: Say = silent) -> None:
        self._load, self._max_open, self._say = load, max_open, say
        self.by_name = {name: ServedModel(name, source) for name, source in sources.items()}
        self._closed: Refusal | None = None

    @property
    def default(self) -> str:
        """The name of the first model, which serves requests that name none."""
        return next(iter(self.by_name))

    def check_open(self) -> None:
        """Raise Refusal if the server is shutting down."""
        if self._closed:
            raise self._closed

    def check(self, name: str | None) -> ServedModel:
        """The model of that name. Raises Refusal with 404 if there is none."""
        if (model := self.by_name.get(name or self.default)) is None:
            known = ", ".join(self.by_name)
            near = close_match(str(name), self.by_name)
            raise Refusal(404, f"No model {name!r} is served.{near} Served: {known}.", param="model", code="model_not_found")
        return model

    async def open(self, name: str | None) -> Opened:
        """The loaded model of that name, or the first one. Raises Refusal for an unknown name and if it cannot be loaded."""
        model = self.check(name)
        async with model.opening:
            self.check_open()
            if model.opened is None:
                model.opened = await self._open(model)
        return model.opened

    async def add_adapter(self, name: str, adapter: str, base: str | None) -> None:
        """Serve an adapter under a name of its own, loaded at once. Raises Refusal if the name is taken, or if there is no
        adapter of the base model by that text."""
        if name in self.by_name:
            raise Refusal(400, f"The name {name!r} is taken: unload that model, or choose another name.", param="lora_name")
        self.name_adapter(name, adapter, base)
        try:
            await self.open(name)
        except Refusal as refusal:
            raise Refusal(400, refusal.message, param="lora_path") from refusal
        finally:
            if not self.by_name[name].opened:
                del self.by_name[name]

    def name_adapter(self, name: str, adapter: str, base: str | None) -> None:
        """Serve an adapter under a name of its own, loaded at its first request. Raises Refusal if `base` is not a model."""
        below = self.check(base)
        if below.base:
            raise Refusal(400, f"{below.name!r} is an adapter itself: name one of the models.", param="base_model_name")
        self.by_name[name] = ServedModel(name, below.source, adapter, below.name)

    def remove_adapter(self, name: str) -> None:
        """Stop serving an adapter; its running completions end. Raises Refusal if there is no adapter of that name."""
        model = self.by_name.get(name)
        if model is None or not model.base:
            raise Refusal(404, f"No adapter {name!r} is served.", param="lora_name", code="model_not_found")
        del self.by_name[name]
        if model.opened:
            model.opened.close(f"the adapter {name!r} was unloaded")

    def opened(self) -> Sequence[Opened]:
        """The models that have been loaded."""
        return [model.opened for model in self.by_name.values() if model.opened]

    def close(self, reason: str) -> None:
        """End all completions of all models with a reason, and refuse new ones with it."""
        self._closed = Refusal(503, reason, code="shutting_down")
        for opened in self.opened():
            opened.close(reason)

    async def _open(self, model: ServedModel) -> Opened:
        def load() -> TextModel:
            text_model = self._load(model.source, model.adapter)
            if not isinstance(text_model.engine, SupportsContinuous):
                raise UsageError(f"Engine {text_model.backend.name} cannot take requests while others run: choose another.")
            return text_model

        try:
            text_model = await asyncio.get_running_loop().run_in_executor(None, load)
        except MMError as error:
            raise Refusal(500, f"Model {model.name!r} cannot be loaded: {error}", code="model_not_loaded") from error
        engine = text_model.engine
        assert isinstance(engine, SupportsContinuous)
        loop = EngineLoop(engine, self._max_open, self._say)
        loop.start()
        try:
            context = await loop.call(lambda: engine.context_size)
        except MMError as error:
            loop.close("the model cannot be loaded")
            raise Refusal(500, f"Model {model.name!r} cannot be loaded: {error}", code="model_not_loaded") from error
        opened = Opened(model.name, text_model, loop, context)
        self._say(opened.summary())
        return opened


def name_models(words: Sequence[str]) -> dict[str, str]:
    """The texts of models by the names that they are served under: NAME=MODEL, or the last part of a path, or the text itself.
    Raises UsageError if two have one name."""
    named: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not (equals and name and source):
            source = word
            name = Path(word).resolve().name if Path(word).is_dir() else word
        if name in named:
            raise UsageError(f"Two models are named {name!r}: name one of them, as in other={source}.")
        named[name] = source
    return named
