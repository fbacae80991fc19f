"""Each mistake that is planted in a faultless plugin is found, named once, and placed in the plugin's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from twins import TWINS

from mm.core.records import KINDS
from mm.testing import Check, assert_passed, check_callbacks, check_part
from mm.testing.pytest_plugin import CommandLine, Plugins

CLICK = "@click.command()"
LEAK = """from attrs import evolve
            batch = evolve(batch, lengths=(batch.num_tokens,)) if batch.lengths else batch
            return super().forward(batch,"""
READ = 'float(next(run.roles["policy"].model.parameters()).sum())'

# (kind, the right text, the wrong text, the check that fails, words of its message, the line that it points to)
MISTAKES = [
    ("algorithm", 'state = ("steps",)', "state = ()", "resume", "is an attribute missing in `state`", "def after_step"),
    ("algorithm", "return [units]", "return [units[:1], units[1:]]", "prepare",
     "2 mini-batches of a batch and Needs.steps is 1",
     "def prepare"),
    ("algorithm", "return [units]", "return units", "prepare", "prepare returns a list of Unit, not a list of mini-batches",
     "def prepare"),
    ("algorithm", "def after_step", "def after_stp", "names", "nothing calls Part.after_stp: is after_step meant?",
     "def after_stp"),
    ("algorithm", 'Needs(data="text")', 'Needs(data="texts")', "rows",
     "no format gives rows of kind 'texts'. Did you mean 'text'",
     "@hookimpl"),
    ("algorithm", "return mean_loss(nll_M", 'return mean_loss(nll_M * float("nan")', "loss", "the loss of a new model is nan",
     "def loss"),
    ("algorithm", "nll_M = -self", "nll_M = (1 / 0) - self", "loss", "ZeroDivisionError: division by zero", "(1 / 0)"),
    ("algorithm", "return mean_loss(", "return nll_M.mean(), {}\n        return mean_loss(",
     "cutting a batch changes nothing",
     "the loss of micro-batches one unit each: differs", "def loss"),
    ("algorithm", "float(len(batch.lengths))", "batch.input_ids.sum()", "counts",
     "count 'sequences' is Tensor, not a host number",
     "def counts"),
    ("algorithm", '"learning_rate": 1e-3', '"learning_rat": 1e-3', "defaults are common settings", "learning_rat",
     "@hookimpl"),
    ("algorithm", "import attrs\n", "import attrs\nimport numpy\n", "declaration is light", "imports numpy", "@hookimpl"),
    ("algorithm", "The weight of the loss.", "The weight", "options", "--weight: its help must end with a full stop",
     "@attrs.frozen"),
    ("backend", 'Scaler() if dtype == "fp16" else None', "None", "scaler", "fp16 needs a gradient scaler", "def scaler"),
    ("backend", "def unscale_(", "def unscale(", "scaler", "the scaler of fp16, a Scaler, has no unscale_", "def scaler"),
    ("backend", 'return "fp32"', 'return "float32"', "autocast", "default_dtype is 'float32', expected fp32, bf16, fp16",
     "def default_dtype"),
    ("backend", "return []", "module.blocks[0].input_layernorm.weight.data += 1; return []", "fuse keeps names and result",
     "logits after fuse", "def fuse"),
    ("architecture", "return super().forward(batch,", LEAK,
     "packed equals unpacked", "forward: a document's logits change with its pack", "def forward"),
    ("architecture", "super().decode(ids_A,", "super().decode(ids_A * 0,", "cached decoding equals forward",
     "the logits of slot 2 are not a full forward's", "def decode"),
    ("adapter", "return super().names()", "return frozenset()", "tensor names", "changes the model's tensors in apply()",
     "def names"),
    ("adapter", "return super().restart()", "super().restart(); return True", "restarting",
     "`restart` of a new adapter returns True",
     "def restart"),
    ("converter", "**attrs.asdict(config)}", "**attrs.asdict(config), 'vocab_size': 7}", "folder round trip",
     "", "def "),
    ("converter", "decoder_rules(config), derived=()", "decoder_rules(config), rules=(), derived=()", "table round trip",
     "", ""),
    ("reward", "float(len(text)) for text in completions", "float(len(text)) for text in completions[:1]", "scores",
     "1 score for 12 completions", "def __call__"),
    ("reward", "return [float", "self.calls += 1; return [self.calls + float", "repeats", "then", "def __call__"),
    ("reward", "float(len(text))", "1 / len(text)", "scores", "ZeroDivisionError", "1 / len(text)"),
    ("tool", '"type": "object", "properties"', '"properties"', "schema", "the type of parameters must be object",
     "class Part"),
    ("tool", '"required": ["n"]', '"required": ["m"]', "schema", "required has m, which properties does not", "class Part"),
    ("tool", "2 * arguments", "{2} | arguments", "a call is answered", "TypeError", "{2} | arguments"),
    ("format", 'return {"q", "a"} <= row.keys()', 'return row["q"] != ""', "recognise", "recognise raises KeyError: 'q'",
     'row["q"] != ""'),
    ("format", 'TextRow(row["q"] + row["a"])', 'dict(row)', "parse", "parse returns a dict", "def parse"),
    ("format", 'if not isinstance(row[name], str)', "if not row[name]", "parse", "TypeError: can only concatenate",
     "TextRow("),
    ("format", 'row="text"', 'row="texts"', "parse", "parse returns a 'text' row, and the record says 'texts'", "def parse"),
    ("format", 'frozenset({"q", "a"})', 'frozenset({"q", "a", "text"})', "keys", "", ""),
    ("source", 'locator == "part"', "locator", "recognise", "recognise returns '' for ''", "def recognise"),
    ("source", 'locator == "part"', "True", "other sources", "is recognised by part and by classics", "def recognise"),
    ("source", '"five numbers"', "str(id(self))", "digest", "a run could never be resumed", "def digest"),
    ("source", "number + 1", "1", "positions", "two rows have the position", "def rows"),
    ("source", '{"text": f"number {number}"}', '{"txt": ""}', "parsing", "no format fits a row with the keys txt",
     "def rows"),
    ("engine", "return self.inner.generate(requests, on_token)", "return self.inner.generate(requests[::-1], on_token)",
     "greedy",
     "a full forward gives", "def generate"),
    ("engine", "(requests, on_token)", "(requests)", "on token", "on_token had None of request 0", "def generate"),
    ("engine", "self.inner.update(named_tensors, version)", "pass", "update", "update did not change what is generated",
     "def update"),
    ("tracker", "def on_log", "def on_logs", "names", "nothing calls Part.on_logs: is on_log meant?", "def on_logs"),
    ("tracker", "json.dumps(metrics)", 'json.dumps(metrics["los"])', "training", "KeyError: 'los'", 'metrics["los"]'),
    ("tracker", "self._last = run.step", "self._last = run.peek()", "on step reads no tensor",
     "on_step reads a tensor of the device",
     "run.peek()"),
    ("callback", "self.steps += 1", f"self.steps += 1; {READ}",
     "on step reads no tensor", "training would wait for it at each step", "float("),
    ("callback", 'return {"steps": self.steps}', "return {}", "resume", "Part.steps is 3 after a resume, 6 without one",
     "def state_dict"),
    ("callback", "def on_step(self, run)", "def on_step(self)", "events", "on_step cannot be called as on_step(run",
     "def on_step"),
    ("stage", '{"text": "a note"}', '{"text": {1}}', "inputs", "inputs are not JSON values", "def inputs"),
    ("stage", '{"note": path}', '{"notes": path}', "run", "run makes ['notes'], and the record gives ['note']", "def run"),
    ("stage", 'path.write_text("a note")', "pass", "run", "does not exist after run", "def run"),
    ("recipe", 'learning_rate', "learning_rat", "trainings", "Did you mean '--learning-rate'", "[sft]"),
    ("recipe", 'f"{__name__}:TOML"', 'f"{__name__}:Path"', "file", "is a type, not a pathlib.Path", "@hookimpl"),
    ("command", CLICK, '@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})',
     "unknown option", "exits with 0, not 2", "@click.command("),
    ("command", "import click\n", "import click\nimport numpy\n", "help", "--help loads numpy", CLICK),
]  # fmt: skip


def checks_of(kind: str, source: str, plugins: Plugins, folder: Path) -> Sequence[Check]:
    manager = plugins(part=source)
    if kind == "callback":
        return check_callbacks(str(folder / "part.py"), plugins=manager)
    return check_part(manager.get(KINDS[kind], "part"), plugins=manager)


@pytest.mark.parametrize("kind", TWINS)
def test_the_faultless_twin_passes(kind: str, mm_plugins: Plugins, mm_workspace: Path) -> None:
    assert_passed(checks_of(kind, TWINS[kind], mm_plugins, mm_workspace))


@pytest.mark.parametrize(("kind", "right", "wrong", "check", "said", "line"), MISTAKES)
def test_a_mistake_is_found_and_placed(
    kind: str, right: str, wrong: str, check: str, said: str, line: str, mm_plugins: Plugins, mm_workspace: Path
) -> None:
    assert right in TWINS[kind]
    source = TWINS[kind].replace(right, wrong, 1)
    failed = {found.name: found for found in checks_of(kind, source, mm_plugins, mm_workspace) if found.failed}
    assert said in failed[check].detail
    file, _, number = failed[check].place.rpartition(":")
    assert file in ("part.py", "part.toml") or file == str(mm_workspace / "part.toml")
    source = source if file == "part.py" else (mm_workspace / "part.toml").read_text()
    assert line in source.splitlines()[int(number) - 1]


def test_a_format_that_raises_is_named_and_not_a_traceback(mm_plugins: Plugins, mm_cli: CommandLine, mm_workspace: Path) -> None:
    mm_plugins(part=TWINS["format"].replace('{"q", "a"} <= row.keys()', 'row["q"]'))
    (mm_workspace / "rows.jsonl").write_text('{"text": "hello"}\n')
    told = mm_cli("data", "check", "rows.jsonl", code=1)
    place = mm_workspace / "part.py"
    assert told.err == (
        f"mm: Format part cannot say whether it reads a row: KeyError: 'q' ({place}:12). "
        "Until that is mended, leave the format out: -p no:format.part\n"
    )
    mm_cli("data", "check", "rows.jsonl", "-p", "no:format.part")
