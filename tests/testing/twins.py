"""A faultless plugin of each kind in one file, in which the tests of the conformance suites plant mistakes."""

ALGORITHM = '''
import attrs

from mm.contracts import Algorithm, AlgorithmSpec, Needs, hookimpl, mean_loss, option


@attrs.frozen(kw_only=True)
class PartConfig:
    weight: float = option(1.0, help="The weight of the loss.", within="(0, inf)")


@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="part", summary="A part.", target=f"{__name__}:Part", config=PartConfig, needs=Needs(data="text"),
        defaults={"learning_rate": 1e-3},
    )


class Part(Algorithm):
    state = ("steps",)

    def __init__(self, config, models, context):
        super().__init__(config, models, context)
        self.steps = 0

    def prepare(self, units):
        return [units]

    def counts(self, batch):
        return {"sequences": float(len(batch.lengths))}

    def loss(self, batch, totals):
        nll_M = -self.models["policy"].logprobs(batch)
        return mean_loss(nll_M * self.config.weight / (1 + self.steps), totals.targets, nll=nll_M)

    def after_step(self, step):
        self.steps += 1
        return False
'''

BACKEND = '''
from mm.contracts import Backend, BackendSpec, Probe, hookimpl


@hookimpl
def mm_backends():
    yield BackendSpec(
        name="part", summary="A part.", target=f"{__name__}:Part", probe=lambda: Probe(True, "the host"), priority=-1
    )


class Part(Backend):
    def default_dtype(self):
        return "fp32"

    def scaler(self, dtype):
        return Scaler() if dtype == "fp16" else None

    def fuse(self, module):
        return []


class Scaler:
    def __init__(self):
        self.size, self.overflow = 2.0**16, False

    def get_scale(self):
        return self.size

    def scale(self, loss):
        return loss * self.size

    def unscale_(self, optimizer):
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad /= self.size
            self.overflow |= not parameter.grad.isfinite().all()

    def step(self, optimizer):
        if not self.overflow:
            optimizer.step()

    def update(self):
        self.size /= 2 if self.overflow else 1
        self.overflow = False

    def state_dict(self):
        return {"size": self.size}

    def load_state_dict(self, state):
        self.size = state["size"]
'''

ARCHITECTURE = '''
from mm.contracts import ArchitectureSpec, hookimpl
from mm.plugins.architectures.dense import DenseConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@hookimpl
def mm_architectures():
    yield ArchitectureSpec(
        name="part", summary="A part.", target=f"{__name__}:Part", config=DenseConfig, presets={"tiny": SIZES}
    )


def __getattr__(name):
    if name != "Part":
        raise AttributeError(name)
    from mm.plugins.architectures.dense.model import Dense

    class Part(Dense):
        def forward(self, batch, **options):
            return super().forward(batch, **options)

        def decode(self, ids_A, slots_A, cache):
            return super().decode(ids_A, slots_A, cache)

    globals()["Part"] = Part
    return Part
'''

ADAPTER = '''
from mm.contracts import AdapterSpec, hookimpl
from mm.plugins.adapters.lora import LoraConfig


@hookimpl
def mm_adapters():
    yield AdapterSpec(name="part", summary="A part.", target=f"{__name__}:Part", config=LoraConfig)


def __getattr__(name):
    if name != "Part":
        raise AttributeError(name)
    from mm.plugins.adapters.lora.adapter import Lora

    class Part(Lora):
        def names(self):
            return super().names()

        def restart(self):
            return super().restart()

    globals()["Part"] = Part
    return Part
'''

CONVERTER = '''
import attrs

from mm.contracts import Converter, ConverterSpec, hookimpl
from mm.plugins.architectures.dense import DenseConfig


@hookimpl
def mm_converters():
    yield ConverterSpec(
        name="part", summary="A part.", target=f"{__name__}:Part", architecture="dense", reads=("PartModel",), writes="PartModel"
    )


class Part(Converter):
    def rules(self, config):
        from mm.converters.decoder_rules import decoder_rules

        table = decoder_rules(config)
        return attrs.evolve(table, rules=tuple(map(turned, table.rules)), derived=())

    def read_config(self, hf):
        return DenseConfig(**{field.name: hf[field.name] for field in attrs.fields(DenseConfig)})

    def write_config(self, config, tokenizer):
        return {"architectures": ["PartModel"], "model_type": "part", **attrs.asdict(config)}


def turned(rule):
    if "{layer}" not in rule.theirs or len(rule.shape) != 2:
        return rule
    return attrs.evolve(rule, to_theirs=lambda ours: ours.t(), to_ours=lambda theirs: theirs.t())
'''

REWARD = '''
from mm.contracts import Reward, RewardSpec, hookimpl


@hookimpl
def mm_rewards():
    yield RewardSpec(name="part", summary="A part.", target=f"{__name__}:Part")


class Part(Reward):
    calls = 0

    def __call__(self, rows, completions):
        return [float(len(text)) for text in completions]
'''

TOOL = '''
from mm.contracts import Tool, ToolSpec, hookimpl


@hookimpl
def mm_tools():
    yield ToolSpec(name="part", summary="A part.", target=f"{__name__}:Part")


class Part(Tool):
    schema = {
        "name": "twice", "description": "Twice a number.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    }

    def __call__(self, arguments):
        return {"result": 2 * arguments["n"]}
'''

FORMAT = '''
from mm.contracts import DataError, Format, FormatSpec, hookimpl
from mm.runtime.text.rows import TextRow


@hookimpl
def mm_formats():
    yield FormatSpec(
        name="part", summary="A part.", target=f"{__name__}:Part", row="text", recognise=recognise,
        example={"q": "1 + 1?", "a": "2"},
    )


def recognise(row):
    return {"q", "a"} <= row.keys()


class Part(Format):
    keys = frozenset({"q", "a"})

    def parse(self, row):
        for name in ("q", "a"):
            if not isinstance(row[name], str):
                raise DataError(f"{name} is not text", problem="wrong type")
        return TextRow(row["q"] + row["a"])
'''

SOURCE = '''
import attrs

from mm.contracts import Position, Source, SourceSpec, UsageError, hookimpl, option

KINDS = ("text",)


@attrs.frozen(kw_only=True)
class PartConfig:
    count: int = option(5, help="The number of rows.", within="[1, 100]")
    word: str = option("number", help="The first word.")


@hookimpl
def mm_sources():
    yield SourceSpec(
        name="part", summary="A part.", target=f"{__name__}:Part", recognise=recognise, provides=KINDS, config=PartConfig
    )


def recognise(locator):
    return locator == "part"


class Part(Source):
    def rows(self):
        if self.row_kind not in ("", *KINDS):
            raise UsageError(f"--data {self.locator}: it has text rows, not {self.row_kind!r}.")
        for number in range(self.config.count):
            yield Position(path="part", line=number + 1), {"text": f"{self.config.word} {number}"}

    def digest(self):
        return f"{self.config.count} rows of {self.config.word}"
'''

ENGINE = '''
from mm.contracts import Engine, EngineSpec, hookimpl


@hookimpl
def mm_engines():
    yield EngineSpec(name="part", summary="A part.", target=f"{__name__}:Part")


class Part(Engine):
    def __init__(self, config, model, backend):
        from mm.plugins.engines.local.engine import LocalEngine

        self.inner = LocalEngine(None, model, backend)

    def generate(self, requests, on_token=None):
        return self.inner.generate(requests, on_token)

    def update(self, named_tensors, version):
        self.inner.update(named_tensors, version)
'''

TRACKER = '''
import json

from mm.contracts import Callback, TrackerSpec, hookimpl


@hookimpl
def mm_trackers():
    yield TrackerSpec(name="part", summary="A part.", target=f"{__name__}:Part")


class Part(Callback):
    def __init__(self, config, folder):
        self.path, self.lines, self._began = folder.path / "part.jsonl", 0, None

    def on_step(self, run):
        self._last = run.step

    def on_log(self, run, metrics):
        self.lines += 1
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\\n")

    def state_dict(self):
        return {"lines": self.lines}

    def load_state_dict(self, state):
        self.lines = state["lines"]
'''

CALLBACK = '''
from mm.contracts import Callback, hookimpl


@hookimpl
def mm_callbacks(run):
    yield Part()


class Part(Callback):
    def __init__(self):
        self.steps = 0

    def on_step(self, run):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state.get("steps", 0)
'''

STAGE = '''
import attrs

from mm.contracts import Stage, StageResult, StageSpec, hookimpl, option


@attrs.frozen(kw_only=True)
class PartConfig:
    title: str = option("Notes", help="The first line.")
    threads: int = option(1, help="How many threads write.")


@hookimpl
def mm_stages():
    yield StageSpec(name="part", summary="A part.", target=f"{__name__}:Part", config=PartConfig, gives=("note",))


class Part(Stage):
    def inputs(self, artifacts):
        return {"title": self.config.title, "text": "a note"}

    def plan(self, artifacts):
        return "write a note"

    def run(self, artifacts):
        path = self.workspace.path / "note.txt"
        path.write_text(f"{self.config.title}: a note")
        return StageResult({"note": path}, "a note")
'''

RECIPE = '''
from pathlib import Path

from mm.contracts import RecipeSpec, hookimpl

TOML = Path(__file__).with_suffix(".toml")
TOML.write_text("[sft]\\nlearning_rate = 1e-4\\n")


@hookimpl
def mm_recipes():
    yield RecipeSpec(name="part", summary="A part.", target=f"{__name__}:TOML")
'''

COMMAND = '''
import click

from mm.contracts import CommandSpec, hookimpl


@hookimpl
def mm_commands():
    yield CommandSpec(name="part", summary="A part.", target=f"{__name__}:part")


@click.command()
@click.option("--times", default=1, help="How often.")
def part(times):
    """Say hello."""
    for _ in range(times):
        click.echo("hello")
'''

TWINS = {
    "algorithm": ALGORITHM, "backend": BACKEND, "architecture": ARCHITECTURE, "adapter": ADAPTER, "converter": CONVERTER,
    "reward": REWARD, "tool": TOOL, "format": FORMAT, "source": SOURCE, "engine": ENGINE, "tracker": TRACKER,
    "callback": CALLBACK, "stage": STAGE, "recipe": RECIPE, "command": COMMAND,
}  # fmt: skip
