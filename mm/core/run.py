"""The frozen Run: the selected parts with their typed settings. Its flat form is used in argv, TOML and keyword arguments."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import UsageError
from mm.core.options import Option
from mm.core.records import Needs
from mm.core.settings import Selection, TrainSettings


@attrs.frozen(kw_only=True)
class Run:
    """The settings of one training. `parts` maps `kind.name` to that part's config, and `needs` are the needs of the
    algorithm with this config. Runs are equal if all their settings are."""

    select: Selection
    train: TrainSettings
    parts: Mapping[str, Any]
    options: tuple[Option, ...] = attrs.field(eq=False, repr=False)
    needs: Needs = attrs.field(eq=False, repr=False)

    @property
    def algorithm(self) -> Any:
        """The algorithm's config, or None if it has none."""
        return self.parts.get(f"algorithm.{self.select.algo}")

    @property
    def architecture(self) -> Any:
        """The config of the architecture of a new model; None with `--from`."""
        return self.parts.get(f"architecture.{self.select.arch}")

    def values(self) -> dict[str, Any]:
        """Every setting by its flat key, in the order of the options."""
        return {o.key: getattr(self._section(o.section), o.field) for o in self.options}

    def argv(self) -> list[str]:
        """The command line that gives an equal run."""
        words: list[str] = []
        for option in self.options:
            words += _words(option, getattr(self._section(option.section), option.field))
        return words

    def table(self) -> dict[str, Any]:
        """The run as a TOML table: settings with a bare key at the top, a part's other settings in a table of the part's name."""
        top: dict[str, Any] = {}
        for option in self.options:
            value = getattr(self._section(option.section), option.field)
            bare = option.key == option.field.rstrip("_")
            target = top if bare else top.setdefault(option.section.partition(".")[2], {})
            target[option.key if bare else option.field.rstrip("_")] = _plain(value)
        return top

    def _section(self, name: str) -> Any:
        return {"select": self.select, "train": self.train}.get(name) or self.parts[name]


def read_toml(path: Path, option: str = "--config ", pick: Callable[[Any], Mapping[str, Any]] = dict) -> dict[str, Any]:
    """A settings file as flat values: `[lora] alpha` becomes `lora_alpha`. `pick` returns the table to flatten, by default the
    whole file. Raises UsageError naming option and file."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{option}{path}: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}{path}: not valid TOML: {error}.") from None
    flat: dict[str, Any] = {}
    for key, value in pick(table).items():
        if isinstance(value, dict):
            flat.update({f"{key}_{inner}".replace("-", "_"): v for inner, v in value.items()})
        else:
            flat[key.replace("-", "_")] = value
    return flat


def _words(option: Option, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option.flag if value else "--no-" + option.flag.removeprefix("--")]
    if isinstance(value, tuple):
        # an empty selection is the default; any other empty value may override a default that is not empty
        return [f"{option.flag}={item}" for item in value] or ([] if option.section == "select" else [f"{option.flag}="])
    if value is None:  # written even if it is the class's default: a preset or the algorithm may have another
        return [f"{option.flag}=none"]
    return [f"{option.flag}={value!r}" if isinstance(value, float) else f"{option.flag}={value}"]


def _plain(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
