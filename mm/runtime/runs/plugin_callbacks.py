"""The callbacks that plugins add to a run with the hook `mm_callbacks`."""

from __future__ import annotations

import traceback

from mm.core.callback import Callback
from mm.core.errors import close_match
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import Say
from mm.runtime.training.callbacks.observer import Observer, place_of


def plugin_callbacks(plugins: PluginManager, run: Run, report: Say) -> list[Callback]:
    """The callbacks of all plugins for one run; one that is not `required` is left out when it raises.

    A hook that raises is reported in one line, and its plugin becomes broken. The plugin's parts stay usable, as this run may be
    using them.
    """
    callbacks: list[Callback] = []
    for plugin, hook in plugins.implementations("mm_callbacks"):
        try:
            given = [_check(callback) for callback in hook(run)]
        except (Exception, SystemExit) as error:
            plugin.state, plugin.error = "broken", traceback.format_exc()
            report(f"plugin {plugin.name} adds no callbacks: its mm_callbacks raised {place_of(error)}")
        else:
            callbacks += [c if c.required else Observer(c, plugin.name, report) for c in given]
    plugins.check_strict()
    return callbacks


def _check(callback: Callback) -> Callback:
    """Returns the callback. Raises TypeError if it is not a `Callback`, or has an `on_...` method that is not an event."""
    if not isinstance(callback, Callback):
        raise TypeError(f"it yielded {callback!r}, which is not an object of a subclass of mm.contracts.Callback")
    for name in dir(callback):
        if name.startswith("on_") and name not in Callback.events and callable(getattr(callback, name)):
            raise TypeError(f"{type(callback).__name__}.{name}: no such event.{close_match(name, Callback.events)}")
    return callback
