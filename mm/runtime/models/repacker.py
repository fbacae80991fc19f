"""The contract of a repacker, a converter of what other converters write. It makes a file or folder in another form out of a
folder in a Hugging Face layout, or the reverse, so that one repacker serves every architecture that has a converter.

Importing this module imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.core.errors import CheckpointError, ConflictingParts, MMError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import Say, silent
from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.models.config_files import CONFIG, read_config
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.hf_files import WEIGHT_FILES, read_tensors, weight_files
from mm.runtime.models.tensors import compare
from mm.runtime.text.wording import error_text

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.models.folder import LoadedModel

Compare = Callable[["LoadedModel", "LoadedModel"], None]


def _known_dtype(packing: Packing, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and value not in DTYPES:
        raise UsageError(f"--dtype {value}: expected {', '.join(DTYPES)}.")


@attrs.frozen(kw_only=True)
class Packing:
    """How a model is packed: `dtype` is what `--dtype` says (fp32, bf16, fp16; None: not given), `quantise` what
    `--quantise` says ("": not given), `max_shard_size` what `--max-shard-size` says, in bytes (None: not given). `say` prints a
    line for the user. `compare` is not for repackers: mm calls it with the model and one that has the weights in the file.
    Raises UsageError for another dtype."""

    dtype: str | None = attrs.field(validator=_known_dtype)
    quantise: str
    say: Say
    max_shard_size: int | None = None
    compare: Compare | None = None


@attrs.frozen(kw_only=True)
class Contents:
    """The contents of a file or folder by its headers, without its weights: the `kind` of model in the format's words, the
    number of `parameters`, the `types` of its tensors with the number of each, and the `files` of weights with their bytes.
    `quantise` and `dtype` are the options of `mm convert` that write it so, or the format's word for a type that they do not
    write. `context` is the longest document in tokens (None: not said), `tokenizer` what is known of it (None: it has none),
    and `sizes` what else there is."""

    kind: str
    parameters: int
    types: Mapping[str, int]
    files: Mapping[str, int]
    quantise: str = ""
    dtype: str = ""
    context: int | None = None
    tokenizer: Mapping[str, Any] | None = None
    sizes: Mapping[str, Any] = attrs.field(factory=dict)


class Repacker(ABC):
    """A format that is made from a folder in a Hugging Face layout. `layouts` are the names in `architectures` that it can hold,
    `suffix` is that of its file ("" if it is a folder of several), which begins with `magic` (b"": with anything), and
    `quantisations` are the values of `--quantise`, which must be given if it is `always_quantised`. One that `shards` writes
    weights by `save_in_shards`, in several files. The model's tokenizer is looked for if the format `lacks_tokenizer`.

    One with an `adapter_config`, the name of a file in saved adapters, has no layouts: it packs the folder of an adapter, with no
    further options."""

    layouts: ClassVar[tuple[str, ...]]
    lacks_tokenizer: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    magic: ClassVar[bytes] = b""
    quantisations: ClassVar[tuple[str, ...]] = ()
    always_quantised: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    adapter_config: ClassVar[str] = ""

    def recognises(self, path: Path) -> bool:
        """True if `unpack` reads the file or folder. Only its name and small files in it are looked at."""
        return False

    def values(self, path: Path) -> Mapping[str, Any]:
        """The config.json that `unpack` writes for `path`, for `mm info`. A format that `lacks_tokenizer` overrides this."""
        with TemporaryDirectory(prefix="mm-unpacked-") as folder:
            self.unpack(path, Path(folder), None, silent)
            return read_config(Path(folder))

    def contents(self, path: Path) -> Contents | None:
        """The contents of a file or folder of a format that only writes, for `mm info`; None if it is not of the format. `path`
        may be anything, so its names and first bytes are looked at first. A format that reads has `values` instead."""
        return None

    def unpack(self, path: Path, folder: Path, tokenizer: Path | None, say: Say) -> None:
        """Write the model in `path` into the empty `folder`, in a Hugging Face layout that a converter reads. `tokenizer` is the
        folder that the user names, for a format that has none. Raises UsageError, or CheckpointError for damaged files."""
        raise Unsupported("it only writes.")

    def tokenizers(self, path: Path) -> Sequence[Path]:
        """The folders of all tokenizers near a file, for a format that `lacks_tokenizer`. `unpack` takes the first; if there are
        several, the model chooses."""
        return ()

    def refusal(self, values: Mapping[str, Any]) -> str:
        """The reason why the format cannot hold a model with this config.json, or "" if it can."""
        return ""

    @abstractmethod
    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """Write the model in `folder`, which is in one of the `layouts`, or the adapter there, into the empty folder `out`. With
        a `suffix` one file of that suffix is written, and beside it only what belongs to it. If `recognises` accepts it, it is
        then unpacked and must be the same model again."""

    def dequantised(self, path: Path, folder: Path) -> Mapping[str, Tensor] | None:
        """All tensors of `path`, packed from `folder` with a quantisation, as another program computes with them and under the
        layout's names; None if they are not known. The cost is measured with them, see `mm.runtime.models.quantised`."""
        return None


def repackers(plugins: PluginManager, *, reading: bool = False) -> Iterator[tuple[ConverterSpec, Repacker]]:
    """All repackers that are installed, or those that read, without those whose name several plugins claim."""
    for spec in plugins.specs(ConverterSpec):
        if not spec.architecture and (spec.reads or not reading):
            with suppress(ConflictingParts):
                yield spec, plugins.load(ConverterSpec, spec.name)()


def repacker_of(plugins: PluginManager, path: Path) -> tuple[str, Repacker] | None:
    """The repacker that reads a file or folder, with its name, or None. Those that only write are not imported."""
    if not path.exists():
        return None
    return next(((spec.name, found) for spec, found in repackers(plugins, reading=True) if found.recognises(path)), None)


def values_of(path: Path, name: str, repacker: Repacker) -> Mapping[str, Any]:
    """`Repacker.values`; any exception of a library becomes a CheckpointError that names the file and the format."""
    with _explain(path, name):
        return repacker.values(path)


def contents_of(plugins: PluginManager, path: Path) -> tuple[str, Repacker, Contents] | None:
    """The contents of a file or folder of a format that only writes, with its name; None if it is of no such format. A model
    folder with weights that a converter may read is not looked into."""
    if not path.exists() or _is_plain(path):
        return None
    for spec, repacker in repackers(plugins):
        if not spec.reads:
            with _explain(path, spec.name):
                if (found := repacker.contents(path)) is not None:
                    return spec.name, repacker, found
    return None


def _is_plain(path: Path) -> bool:
    config = read_config(path) if (path / CONFIG).is_file() else None
    return config is not None and bool(weight_files(path)) and config.get("quantization_config") is None


@contextmanager
def unpacked(packed: tuple[str, Repacker] | None, path: Path, tokenizer: Path | None, say: Say) -> Iterator[Path]:
    """Yields a folder in a Hugging Face layout with the model in `path`, which the repacker of that name reads, and removes it
    afterwards; without a repacker yields the path itself."""
    if packed is None:
        if tokenizer is not None:
            raise UsageError(f"--tokenizer: {path} has a tokenizer of its own.")
        yield path
        return
    with TemporaryDirectory(prefix="mm-unpacked-") as text:
        folder = Path(text)
        name, repacker = packed
        with _explain(path, name):
            repacker.unpack(path, folder, tokenizer, say)
        try:
            yield folder
        except (CheckpointError, Unsupported) as error:  # of a reader that knows only the unpacked folder
            told = str(error)
            for place in (folder / WEIGHT_FILES[0], folder / CONFIG, folder):
                told = told.replace(str(place), str(path))
            raise type(error)(told) from error.__cause__


@contextmanager
def _explain(path: Path, name: str) -> Iterator[None]:
    """Turn what a library raises for a file that it cannot read into a CheckpointError that names both."""
    try:
        yield
    except MMError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, which says it better
            raise
        raise CheckpointError(f"{path}: {name} cannot read it ({error_text(error)}).") from error


def check_read_back(repacker: Repacker, converter: Converter, out: Path, source: Path, same_weights: bool) -> None:
    """Read what a repacker has packed and compare it with the folder that `converter` reads and that it was written from: the
    config, and the tensors if they are the `same_weights`. Raises Unsupported naming a setting that it does not keep, and
    CheckpointError for a tensor."""
    with TemporaryDirectory(prefix="mm-unpacked-") as text:
        folder = Path(text)
        try:
            repacker.unpack(out, folder, source, silent)
        except Unsupported as error:
            raise Unsupported(str(error).removeprefix(f"{out}: ")) from None
        values, own = read_config(folder), read_config(source)
        if values["architectures"] != own["architectures"]:
            raise Unsupported(f"it would be read as {values['architectures'][0]}.")
        kept, wanted = (attrs.asdict(converter.config_from(*found)) for found in ((values, folder), (own, source)))
        for name in wanted:
            if kept[name] != wanted[name]:
                raise Unsupported(f"it does not keep {name}={wanted[name]!r}: that would be read as {kept[name]!r}.")
        if same_weights:
            compare(read_tensors(source), read_tensors(folder))
