"""Optional dependencies."""

from __future__ import annotations

import json
from importlib import metadata
from urllib.parse import unquote, urlparse

DISTRIBUTION = "minimind-ascend"


def install_command(extra: str) -> str:
    """The pip command that adds an extra of this distribution, from the folder or address that it was installed from."""
    # in a checkout, Python may also find the metadata that setuptools left there, which has no origin
    texts = [found.read_text("direct_url.json") for found in metadata.distributions(name=DISTRIBUTION)]
    origin = json.loads(next(filter(None, texts), "{}"))
    url = str(origin.get("url", ""))
    if not url:
        return f'pip install "{DISTRIBUTION}[{extra}]"'
    place = unquote(urlparse(url).path) if url.startswith("file:") else ""
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f'pip install {editable}"{place}[{extra}]"' if place else f'pip install "{DISTRIBUTION}[{extra}] @ {url}"'
