"""The frozen records that plugins yield: data about a part, whose `target` is imported only when the part is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs

from mm.core.configs import AdapterConfig, ArchitectureConfig
from mm.core.spec import Spec, check_extends, check_no_config


@attrs.frozen
class Probe:
    """`available`: True if the backend can run here. `reason`: why it cannot, or the chip that was found."""

    available: bool
    reason: str = ""


@attrs.frozen(kw_only=True)
class Container:
    """A container's access to the chip: devices, `host:container[:ro]` mounts, environment, further `docker run` arguments.
    `card`: the device file of a card, with `{}` for its number, or "gpus" (`--gpus`); `root`: the image's user is root."""

    card: str = ""
    shm_mib: int = 1024  # of shared memory per card
    root: bool = False
    devices: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class BackendSpec(Spec):
    """A chip. `probe` imports no torch and never raises. The variables of `env` are set before torch is imported. The attention
    keeps its probabilities for the backward up to `kept_keys` keys, which a plan counts."""

    kind: ClassVar[str] = "backend"
    hook: ClassVar[str] = "mm_backends"

    probe: Callable[[], Probe]
    priority: int = 0
    env: Mapping[str, str] = attrs.field(factory=dict)
    container: Container = Container()
    kept_keys: int = 0


@attrs.frozen(kw_only=True)
class ArchitectureSpec(Spec):
    """A model. `config` extends `ArchitectureConfig` and imports no torch; `target(config, kernels)` builds the `Model`."""

    kind: ClassVar[str] = "architecture"
    hook: ClassVar[str] = "mm_architectures"

    config: type = attrs.field(validator=check_extends(ArchitectureConfig))
    presets: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Needs:
    """The needs of an algorithm.

    - `data`: the kind of row; `roles`: the models that it uses; `trainable`: those of them that it trains.
    - `user_provided`: roles whose model the user must name. All others start as a copy of the model that the policy starts from.
    - `value_heads`: roles that compute one number per position instead of logits.
    - `generates`: the algorithm samples completions, so that an engine is built, and engine and rewards can be selected.
    - `tools`: the model may call tools, so that these can be selected too.
    - `steps`: the number of optimizer steps per global batch.
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
    """An algorithm, which defines what is learned. `defaults` overrides common settings by name. `needs` is a `Needs`, or a
    function of the config that returns one; reading the attribute always returns a function.

    `starts_from`: if the user names no model, the newest run of one of these algorithms is continued. If it is empty, a new model
    is made. `new_model`: the architecture and preset of that, unless the user names others.
    """

    kind: ClassVar[str] = "algorithm"
    hook: ClassVar[str] = "mm_algorithms"

    needs: Callable[[Any], Needs] = attrs.field(converter=_always)
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    starts_from: tuple[str, ...] = ()
    new_model: tuple[str, str] | None = None


@attrs.frozen(kw_only=True)
class AdapterSpec(Spec):
    """An adapter: parameters that are trained instead of a role's own weights. `config`, if any, extends `AdapterConfig`."""

    kind: ClassVar[str] = "adapter"
    hook: ClassVar[str] = "mm_adapters"

    config: type | None = attrs.field(default=None, validator=check_extends(AdapterConfig))


@attrs.frozen(kw_only=True)
class EngineSpec(Spec):
    """An engine, which generates. `backends` are the names of those that it runs on; empty stands for all."""

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
    """A row schema. `recognise` returns True for a parsed JSON row of this format; `row` is the kind of row that `parse` returns.

    `accepts` returns True for further rows that the format can read if an algorithm needs its kind, although another format
    recognises them, as a prompt may be a finished conversation. `example` is a short row of the format, for messages.
    """

    kind: ClassVar[str] = "format"
    hook: ClassVar[str] = "mm_formats"

    config: None = attrs.field(default=None, validator=check_no_config)
    row: str
    recognise: Callable[[Mapping[str, Any]], bool]
    accepts: Callable[[Mapping[str, Any]], bool] | None = None
    example: Mapping[str, Any] = attrs.field(factory=dict)

    def fits(self, row: Mapping[str, Any], row_kind: str = "") -> bool:
        """True if the format can read the row. `row_kind`: the needed kind of row, or "" for any, without `accepts`."""
        fits = not row_kind or row_kind == self.row
        return fits and (self.recognise(row) or bool(row_kind and self.accepts and self.accepts(row)))


@attrs.frozen(kw_only=True)
class SourceSpec(Spec):
    """A source of rows. `recognise` returns True for a text of `--data` that names this source. `provides` lists the kinds of
    rows that a built-in source has; it is empty for sources that read files of the user."""

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
    """A tracker: a callback with a config that records metrics. `always`: it is used even if the user does not select it."""

    kind: ClassVar[str] = "tracker"
    hook: ClassVar[str] = "mm_trackers"

    always: bool = False


@attrs.frozen(kw_only=True)
class ConverterSpec(Spec):
    """A converter of a checkpoint format for one architecture. `reads` lists the names in a config.json's `architectures` that it
    can import; `writes` is the name that it exports. With `architecture` "" it is a `Repacker`, of what converters write."""

    kind: ClassVar[str] = "converter"
    hook: ClassVar[str] = "mm_converters"

    architecture: str = ""
    reads: tuple[str, ...] = ()
    writes: str = ""


@attrs.frozen(kw_only=True)
class StageSpec(Spec):
    """A stage of `mm run`.

    - `needs` and `gives` are names of artifacts, which determine the order of the stages.
    - `after` are artifacts, as patterns such as `run:*`, that the stage does not need, but waits for if a stage of the same call
      makes them.
    - `presets` are the groups of stages that it belongs to.
    - `algorithm` is that of a stage that trains, starting from the first of its `needs`; `defaults` are then its settings.
    - `takes` are settings whose values are artifacts, unless the user sets them: the first that exists of each tuple, as in
      `{"teacher_from": ("run:better", "run:base")}`.
    """

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
class RecipeSpec(Spec):
    """Settings of trainings, for `--config NAME:TABLE`. The target is the path of a TOML file with a table for each algorithm."""

    kind: ClassVar[str] = "recipe"
    hook: ClassVar[str] = "mm_recipes"

    config: None = attrs.field(default=None, validator=check_no_config)


@attrs.frozen(kw_only=True)
class CommandSpec(Spec):
    """A subcommand of `mm`. The target is a click command, which has options of its own; its `obj` is the `PluginManager`."""

    kind: ClassVar[str] = "command"
    hook: ClassVar[str] = "mm_commands"

    config: None = attrs.field(default=None, validator=check_no_config)


RECORDS: tuple[type[Spec], ...] = (
    BackendSpec, ArchitectureSpec, AlgorithmSpec, ConverterSpec, AdapterSpec, EngineSpec, RewardSpec, FormatSpec,
    SourceSpec, ToolSpec, TrackerSpec, StageSpec, RecipeSpec, CommandSpec,
)  # fmt: skip
KINDS: dict[str, type[Spec]] = {record.kind: record for record in RECORDS}
