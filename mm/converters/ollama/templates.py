"""The chat templates that there is a Go template for: ours and those of MiniMind's two generations.

Ollama does not run Jinja. Its Go templates have no JSON with spaces, so `json.tmpl` spells tools and arguments out as Jinja's
`tojson` does. Go sorts the keys of a map, so parameters of tools and arguments of calls come in alphabetical order.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mm.runtime.models.converter import Unsupported
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE

_FOLDER = Path(__file__).with_name("templates")
# the first 16 hex digits of the SHA-256 of MiniMind's `chat_template`
_MINIMIND = {"4f57494cd38c0e4e": "minimind2", "97c6a9ef3f8d3504": "minimind3"}


def go_template(jinja: str) -> str:
    """The Go template that renders the same text as a Jinja one. Raises Unsupported if there is none."""
    own = DEFAULT_TEMPLATE.read_text(encoding="utf-8").strip()
    name = "mm" if jinja.strip() == own else _MINIMIND.get(hashlib.sha256(jinja.encode()).hexdigest()[:16], "")
    if not name:
        raise Unsupported(
            "its chat template is neither mm's nor MiniMind's, and Ollama needs it in Go. Write the file alone with --to gguf, "
            "and a TEMPLATE of your own in a Modelfile."
        )
    parts = ("json", name) if name == "mm" else ("json", "minimind", name)
    return "".join((_FOLDER / f"{part}.tmpl").read_text(encoding="utf-8").rstrip("\n") for part in parts)
