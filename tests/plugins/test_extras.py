"""The command that installs an extra is the one for the installation at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm.plugins import extras
from mm.testing import fake_distribution


@pytest.mark.parametrize(
    "origin, command",
    [
        (None, 'pip install "acme[maths]"'),
        ({"url": "file:///home/me/mini%20mind", "dir_info": {"editable": True}}, 'pip install -e "/home/me/mini mind[maths]"'),
        ({"url": "file:///tmp/acme-1.0.whl", "archive_info": {}}, 'pip install "/tmp/acme-1.0.whl[maths]"'),
        ({"url": "https://host/acme.git", "vcs_info": {}}, 'pip install "acme[maths] @ https://host/acme.git"'),
    ],
)
def test_it_names_the_place(
    origin: dict[str, object] | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_distribution(tmp_path / "site", "acme", "1.0", {}, {})
    if origin:
        (next(Path(folder).glob("*.dist-info")) / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(extras, "DISTRIBUTION", "acme")
    assert extras.install_command("maths") == command
