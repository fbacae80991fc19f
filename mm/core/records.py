"""The frozen records that plugins yield: data about a part, never the part itself.

A record names its implementation as `"module:attr"`; that module is imported when the part is used, so listing,
help and option errors stay free of torch. A field that a record does not have makes its plugin broken, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs

from mm.core.spec import Spec, check_config


@attrs.frozen
class Probe:
    """Whether a backend can run here; `reason` says why not, or names what was found."""

    available: bool
    reason: str = ""


@attrs.frozen(kw_only=True)
class Container:
    """What a container needs to reach the chip: host devices, `host:container[:ro]` mounts, environment."""

    devices: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class BackendSpec(Spec):
    """A chip. `probe` imports no torch and never raises; `env` is set before torch is imported."""

    kind: ClassVar[str] = "backend"
    hook: ClassVar[str] = "mm_backends"

    probe: Callable[[], Probe]
    priority: int = 0
    env: Mapping[str, str] = attrs.field(factory=dict)
    container: Container = Container()


@attrs.frozen(kw_only=True)
class ArchitectureSpec(Spec):
    """A model. `config` is torch-free and has `num_parameters() -> int` and `flops_per_token(context) -> float` (of training),
    and `num_active_parameters() -> int` where a token does not pass all of them. Where the format that holds such models has
    some of their layers larger by a factor, `exported_scales` is {the end of a layer's name: the factor}."""

    kind: ClassVar[str] = "architecture"
    hook: ClassVar[str] = "mm_architectures"

    config: type = attrs.field(validator=check_config)
    presets: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)


def active_parameters(config: Any) -> int:
    """The weights that one token passes: all of them, unless the architecture's config says otherwise."""
    count: int = getattr(config, "num_active_parameters", config.num_parameters)()
    return count


@attrs.frozen(kw_only=True)
class Needs:
    """What an algorithm needs: the kind of row, the roles (models) it uses and those of them that it trains.

    A role begins as a copy of the policy's start, unless it is in `user_provided`: then the user names its model. Those in
    `value_heads` answer one number a position instead of logits. `generates`: the algorithm draws completions, so an engine
    is built, and engine and rewards may be selected; `tools`: it lets the model call tools, which may then be selected,
    too. `steps`: optimizer steps made of a global batch.
    """

    data: str
    roles: tuple[str, ...] = ("policy",)
    trainable: tuple[str, ...] = ("policy",)
    user_provided: tuple[str, ...] = ()
    value_heads: tuple[str, ...] = ()
    generates: bool = False
    tools: bool = False
    steps: int = 1


def _always(needs: Needs | Callable[[Any], Needs]) -> Callable[[Any], Needs]:
    return (lambda config: needs) if isinstance(needs, Needs) else needs


@attrs.frozen(kw_only=True)
class AlgorithmSpec(Spec):
    """What is learned. `defaults` overrides common settings by name; `needs` is a `Needs`, or a function of the config that
    returns one, and is read as a function.

    `starts_from` names the algorithms whose runs this one continues when the user names no model; without any, a new
    model is made, of the `new_model` architecture and preset unless the user names others.
    """

    kind: ClassVar[str] = "algorithm"
    hook: ClassVar[str] = "mm_algorithms"

    needs: Callable[[Any], Needs] = attrs.field(converter=_always)
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    starts_from: tuple[str, ...] = ()
    new_model: tuple[str, str] | None = None


@attrs.frozen(kw_only=True)
class AdapterSpec(Spec):
    """A change to a trained role's weights that is trained instead of them, such as low-rank adaptation.

    An option `from_` of its config is what it begins with: a run's name is made the folder of that run's adapter."""

    kind: ClassVar[str] = "adapter"
    hook: ClassVar[str] = "mm_adapters"


@attrs.frozen(kw_only=True)
class EngineSpec(Spec):
    """What generates. `backends` names those it runs on; empty means every backend."""

    kind: ClassVar[str] = "engine"
    hook: ClassVar[str] = "mm_engines"

    backends: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class RewardSpec(Spec):
    """A score of completions."""

    kind: ClassVar[str] = "reward"
    hook: ClassVar[str] = "mm_rewards"


@attrs.frozen(kw_only=True)
class FormatSpec(Spec):
    """A row schema. `recognise` looks at one parsed JSON row; `row` is the kind of row that `parse` gives.

    `accepts`: further rows that it reads when an algorithm asks for its kind, though by themselves they would be taken
    for something else: a finished conversation is chat, and also a prompt for whoever needs prompts.
    """

    kind: ClassVar[str] = "format"
    hook: ClassVar[str] = "mm_formats"

    row: str
    recognise: Callable[[Mapping[str, Any]], bool]
    accepts: Callable[[Mapping[str, Any]], bool] | None = None

    def fits(self, row: Mapping[str, Any], row_kind: str = "") -> bool:
        """Whether the row is this format's, where `row_kind` is needed ("": whatever it is by itself)."""
        if row_kind and row_kind != self.row:
            return False
        return self.recognise(row) or bool(row_kind and self.accepts and self.accepts(row))


@attrs.frozen(kw_only=True)
class SourceSpec(Spec):
    """Where rows come from. `recognise` looks at the text given to `--data`; `provides` lists the row kinds that a
    built-in source has without any file (empty for sources that read what the user names)."""

    kind: ClassVar[str] = "source"
    hook: ClassVar[str] = "mm_sources"

    recognise: Callable[[str], bool]
    provides: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class ToolSpec(Spec):
    """A tool that a model can call."""

    kind: ClassVar[str] = "tool"
    hook: ClassVar[str] = "mm_tools"


@attrs.frozen(kw_only=True)
class TrackerSpec(Spec):
    """A callback with a config that records metrics somewhere. `always`: used without being asked for."""

    kind: ClassVar[str] = "tracker"
    hook: ClassVar[str] = "mm_trackers"

    always: bool = False


@attrs.frozen(kw_only=True)
class ConverterSpec(Spec):
    """A checkpoint format of one architecture. `reads` lists the names in a config.json's `architectures` that it
    imports; `writes` is the one that it exports."""

    kind: ClassVar[str] = "converter"
    hook: ClassVar[str] = "mm_converters"

    architecture: str
    reads: tuple[str, ...] = ()
    writes: str = ""


@attrs.frozen(kw_only=True)
class StageSpec(Spec):
    """A step of `mm run`. `needs` and `gives` name artifacts and so fix the order; `after` are artifacts, as patterns
    such as `run:*`, that it does not need but waits for where a stage of the same call gives them. `presets` names the
    groups of stages that it belongs to. `algorithm` is set for a stage that trains, from the first of its `needs`, and
    `defaults` are then its settings; `takes` says which of them are artifacts, the first of several that is there, unless
    the user says otherwise: `{"teacher_from": ("run:spo", "run:sft")}`."""

    kind: ClassVar[str] = "stage"
    hook: ClassVar[str] = "mm_stages"

    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    takes: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    presets: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    algorithm: str = ""


@attrs.frozen(kw_only=True)
class CommandSpec(Spec):
    """A subcommand of `mm`; the target is a click command."""

    kind: ClassVar[str] = "command"
    hook: ClassVar[str] = "mm_commands"


RECORDS: tuple[type[Spec], ...] = (
    BackendSpec, ArchitectureSpec, AlgorithmSpec, ConverterSpec, AdapterSpec, EngineSpec, RewardSpec, FormatSpec,
    SourceSpec, ToolSpec, TrackerSpec, StageSpec, CommandSpec,
)  # fmt: skip
KINDS: dict[str, type[Spec]] = {record.kind: record for record in RECORDS}
