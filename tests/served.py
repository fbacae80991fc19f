"""A server on a real socket, in a thread of the test's process, with tiny random models."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import torch

from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.workspace import Workspace
from mm.runtime.devices.backend import Backend
from mm.runtime.generation import text_model
from mm.runtime.models.folder import new_model, save_model_folder
from mm.runtime.models.load_settings import InferenceComposition
from mm.runtime.models.storage import seal
from mm.runtime.serving.api.answering import Service
from mm.runtime.serving.metrics import Metrics
from mm.runtime.serving.models import ServedModels
from mm.runtime.serving.server import Server, listen
from mm.runtime.serving.settings import Limits
from mm.runtime.text.tokenizer import Tokenizer

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def save_tiny_model(plugins: PluginManager, folder: Path, *, seed: int = 0, positions: int = 256) -> Path:
    """A random model whose likeliest tokens differ from place to place."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    config = plugins.get(ArchitectureSpec, "dense").config(**TINY, max_position_embeddings=positions)
    loaded = new_model(plugins, "dense", config, Tokenizer.load(), Backend())
    for parameter in loaded.model.parameters():
        parameter.data.mul_(5)
    save_model_folder(folder, loaded)
    seal(folder)
    return folder


@attrs.frozen(eq=False)
class Served:
    """A running server. `lines` are those that it has printed."""

    url: str
    service: Service
    server: Server
    lines: list[str]
    headers: Mapping[str, str]
    load: Callable[[str, str], text_model.TextModel]
    _references: dict[str, text_model.TextModel] = attrs.field(factory=dict)

    def client(self, **options: Any) -> httpx.Client:
        """A client of the server."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60, trust_env=False, **options)

    def get(self, path: str) -> httpx.Response:
        """The answer to a GET."""
        with self.client() as client:
            return client.get(path)

    def post(self, path: str, body: Any) -> httpx.Response:
        """The answer to a POST; a body that is not bytes is sent as JSON."""
        with self.client() as client:
            if isinstance(body, bytes):
                return client.post(path, content=body, headers={"Content-Type": "application/json"})
            return client.post(path, json=body)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream; its end `[DONE]` is the last."""
        with self.client() as client, client.stream("POST", path, json={**body, "stream": True}) as answer:
            answer.read() if answer.status_code != 200 else None
            assert answer.status_code == 200, answer.text
            return list(events_of(answer))

    def reference(self) -> text_model.TextModel:
        """The server's first model, opened once more as `mm.load` does: an engine serves one thread only."""
        if not self._references:
            self._references[""] = self.load(self.service.models.check(None).source, "")
        return self._references[""]

    def model(self, name: str | None = None) -> text_model.TextModel:
        """A loaded model of the server."""
        opened = self.service.models.check(name).opened
        assert opened is not None
        return opened.text_model


def events_of(answer: httpx.Response) -> Iterator[Any]:
    """The events of a stream as they arrive."""
    for line in answer.iter_lines():
        if line:
            assert line.startswith("data: "), line
            yield "[DONE]" if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))


@contextmanager
def serving(
    plugins: PluginManager, sources: Mapping[str, Path], *, key: str = "", origins: tuple[str, ...] = (), adapters: bool = False,
    workspace: Path | None = None, engine: Mapping[str, Any] | None = None, **limits: Any,
) -> Iterator[Served]:  # fmt: skip
    """Serve models by name until the block ends; `engine` are options of the engine."""
    inference = attrs.evolve(InferenceComposition(plugins, []).inference, backend="cpu", dtype="fp32")
    inference = attrs.evolve(inference, engine_config=attrs.evolve(inference.engine_config, **(engine or {})))
    lines: list[str] = []

    def load(source: str, adapter: str) -> text_model.TextModel:
        given = ("lora", adapter) if adapter else None
        return text_model.load(plugins, source, Workspace(workspace or Path()), inference, adapter=given)

    settings = Limits(**limits)
    models = ServedModels(
        {name: str(path) for name, path in sources.items()}, load, max_open=settings.max_open, say=lines.append
    )
    service = Service(models, settings, Metrics(models), lines.append, adapters)
    server, ready = Server(service, key=key, origins=origins), threading.Event()
    with listen("127.0.0.1", 0) as socket:

        async def run() -> None:
            await models.open(None)
            ready.set()
            await server.run_on(socket)

        thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
        thread.start()
        assert ready.wait(60)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            yield Served(f"http://127.0.0.1:{socket.getsockname()[1]}", service, server, lines, headers, load)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
