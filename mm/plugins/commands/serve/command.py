"""The command `mm serve`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import frozen

from mm.core.errors import UsageError
from mm.core.options import option
from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins import extras
from mm.plugins.commands import dialogue
from mm.runtime.models.finding import find_adapter, find_model
from mm.runtime.serving.settings import Limits

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import TextModel
    from mm.runtime.models.load_settings import Inference
    from mm.runtime.serving.api.answering import Service

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_ADAPTERS = "lora"


@frozen(kw_only=True)
class ServeSettings(Limits):
    """The options of the server."""

    host: str = option("127.0.0.1", help="Address to listen on; one that other machines reach needs --api-key.")
    port: int = option(8000, help="Port to listen on; 0 is any free one, which is printed.", within="[0, 65535]")
    api_key: str = option("", help="Where the API key is: a file, or env:NAME for a variable.")
    cors: tuple[str, ...] = option((), help="Origin of pages that may read answers, as https://example.org; may be repeated.")
    lora: tuple[str, ...] = option(
        (), help="Adapter to serve as a model of its own: NAME=RUN or NAME=FOLDER, of the first MODEL, or NAME=FOLDER:MODEL; "
        "may be repeated.",
    )  # fmt: skip
    load_adapters: bool = option(False, help="Let requests load adapters from this machine's folders, and unload them.")


@click.command(cls=dialogue.ModelCommand, settings=ServeSettings)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.pass_context
def serve(ctx: click.Context, /, models: tuple[str, ...]) -> None:
    """Serve each MODEL, a run's name or a model folder, under its name, or under another one as NAME=MODEL.

    The first model is loaded at once and serves requests that name none; the others are loaded at their first request. Clients of
    OpenAI's API use http://127.0.0.1:8000/v1 as base URL. Ctrl-C ends running streams with a reason.
    """
    _check_packages()
    inference, settings = dialogue.resolve(ctx)
    key = _read_key(settings.api_key)
    from mm.runtime.serving.guards import is_loopback

    if not key and not is_loopback(settings.host):
        raise UsageError(f"--host {settings.host} is reachable from other machines: give --api-key FILE or --api-key env:NAME.")
    dialogue.activate(ctx.obj, inference)
    from mm.runtime.serving.server import Server, listen

    with listen(settings.host, settings.port) as socket:
        server = Server(_service(ctx.obj, models, inference, settings), key=key, origins=settings.cors)
        asyncio.run(server.run_on(socket))


def _service(plugins: PluginManager, words: tuple[str, ...], inference: Inference, settings: ServeSettings) -> Service:
    """The service of the named models and adapters. Raises UsageError for one that does not exist."""
    from mm.runtime.generation import text_model
    from mm.runtime.serving.api.answering import Service
    from mm.runtime.serving.errors import Refusal
    from mm.runtime.serving.metrics import Metrics
    from mm.runtime.serving.models import ServedModels, name_models

    workspace = Workspace.here()

    def load(source: str, adapter: str) -> TextModel:
        given = (_ADAPTERS, adapter) if adapter else None
        return text_model.load(plugins, source, workspace, inference, on_stderr, adapter=given)

    named = name_models(words)
    for source in named.values():
        find_model(source, workspace, plugins)
    models = ServedModels(named, load, max_open=settings.max_open, say=on_stderr)
    for name, folder, base in map(_split_adapter, settings.lora):
        find_adapter(folder, workspace, plugins)
        if name in models.by_name:
            raise UsageError(f"--lora {name}: a model or adapter has that name already.")
        try:
            models.name_adapter(name, folder, base)
        except Refusal as refusal:
            raise UsageError(f"--lora {name}: {refusal.message}") from None
    return Service(models, settings, Metrics(models), on_stderr, settings.load_adapters)


def _split_adapter(word: str) -> tuple[str, str, str | None]:
    """(name, adapter, base model or None) of NAME=ADAPTER or NAME=ADAPTER:MODEL."""
    name, equals, rest = word.partition("=")
    if not (name and equals and rest):
        raise UsageError(f"--lora {word}: expected NAME=RUN-or-FOLDER.")
    folder, colon, base = rest.rpartition(":")
    return (name, folder, base) if colon and not Path(rest).exists() else (name, rest, None)


def _read_key(text: str) -> str:
    """The API key in a file or variable; "" if none is named. Raises UsageError if it is missing or empty."""
    if not text:
        return ""
    if text.startswith("env:"):
        key = os.environ.get(text.removeprefix("env:"), "").strip()
        where = f"the variable {text.removeprefix('env:')} is not set or empty"
    else:
        try:
            key = Path(text).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"--api-key {text}: {error}. Name a file with the key, or env:NAME.") from None
        where = "the file is empty"
    if not key:
        raise UsageError(f"--api-key {text}: {where}.")
    return key


def _check_packages() -> None:
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"mm serve needs {', '.join(missing)}: {extras.install_command('serve')}")
