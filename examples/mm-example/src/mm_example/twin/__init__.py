"""A second "chip": the host under another name, to show all that a backend is. Imports no torch."""

import os
from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import BackendSpec, Container, Probe


def probe() -> Probe:
    """A real chip looks at its device file and at the metadata of its torch extension, and says what is missing."""
    if os.environ.get("TWIN_VISIBLE_DEVICES") == "":
        return Probe(False, "TWIN_VISIBLE_DEVICES hides every card")
    return Probe(True, "the host stands in for the chip")


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """The chip. Its priority is below the cpu's, so `--backend auto` never takes it."""
    yield BackendSpec(
        name="twin",
        summary="The host under another name.",
        target="mm_example.twin.backend:Twin",
        probe=probe,
        priority=-1,
        env={"TWIN_LOG_LEVEL": "error"},
        container=Container(env={"TWIN_VISIBLE_DEVICES": "0"}),
    )
