"""Each mistake that is planted in a faultless plugin is found, named once, and placed in the plugin's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from twins import TWINS

from mm.core.records import KINDS
from mm.testing import Check, assert_passed, check_callbacks, check_part
from mm.testing.pytest_plugin import CommandLine, Plugins

METAVAR = """type=type("Often", (click.ParamType,), {
    "name": "often", "get_metavar": lambda *values, **others: __import__("numpy").__name__
})(), default=1"""
CLICK = "@click.command()"
LEAK = """from attrs import evolve
            batch = evolve(batch, lengths=(batch.num_tokens,)) if batch.lengths else batch
            return super().forward(batch,"""
HOOK = """def remove(self):
            super().remove(); self.model.register_forward_hook(lambda *_: None)

        def restart(self):"""
INNER = "return self.inner.generate(requests, on_token)"
EVOLVED = f"import attrs; requests = [attrs.evolve(r, ids={{}}) for r in requests]; {INNER}"
FILTERED = """import attrs
        done = self.inner.generate(requests, on_token)
        filtered = [request.sampling.top_k > 1 for request in requests]
        return [attrs.evolve(c, logprobs=(0.0,) * len(c.ids)) if f else c for c, f in zip(done, filtered)]"""
UNPENALISED = """import attrs
        plain = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        requests = [attrs.evolve(r, sampling=attrs.evolve(r.sampling, **plain)) for r in requests]
        return self.inner.generate(requests, on_token)"""
UNBIASED = f"""import attrs
        requests = [attrs.evolve(r, sampling=attrs.evolve(r.sampling, logit_bias=())) for r in requests]
        {INNER}"""
LENIENT = ('''if not isinstance(row[name], str):
                raise DataError(f"{name} is not text", problem="wrong type")
        return TextRow(row["q"] + row["a"])''', '''if not row[name]:
                raise DataError(f"no {name}", problem="missing field")
        return TextRow(f"{row['q']} {row['a']}")''')
MINE = '''    return {"q", "a"} <= row.keys()


class Part(Format):
    keys = frozenset({"q", "a"})

    def parse(self, row):'''
TAKEN = MINE.replace("row.keys()", 'row.keys() or row.keys() == {"text"}') + '''
        if "text" in row:
            row = {"q": "", "a": row["text"]}'''
EACH = "for field in attrs.fields(DenseConfig)"
NUMBERS = "for number in range(self.config.count)"
ONCE = """if hasattr(self, "read"):
            return
        self.read = True
        """
READ = 'float(next(run.roles["policy"].model.parameters()).sum())'

# (kind, the right text, the wrong text, the check that fails, words of its message, the line that it points to)
MISTAKES = [
    ("algorithm", 'state = ("steps",)', "state = ()", "changed attributes",
     "Part.steps changes in training and is not restored (6 at its end, and 0 once the state is loaded): add it to `state`",
     "def after_step"),
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
    ("algorithm", "self.steps += 1", 'self.steps += 1; self.best = getattr(self, "best", 0.5) / 2', "changed attributes",
     "Part.best changes in training and is not restored (0.0078125 at its end, and None once the state is loaded): add it to",
     "def after_step"),
    ("algorithm", "logprobs(batch)", "logprobs(batch).detach()", "loss", "the loss has no gradient: it is detached",
     "def loss"),
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
    ("adapter", "return super().names()", "return frozenset()", "applying changes nothing",
     "changes the model's tensors in apply()", "def names"),
    ("adapter", "return super().restart()", "super().restart(); return True", "restarting",
     "`restart` of a new adapter returns True",
     "def restart"),
    ("adapter", "def restart(self):", HOOK, "removing", "remove leaves a forward hook at the model", "def remove"),
    ("converter", "**attrs.asdict(config)}", "**attrs.asdict(config), 'vocab_size': 7}", "config round trip",
     "vocab_size=300 is read back as 7: write_config writes 7", "def write_config"),
    ("converter", "**attrs.asdict(config)}", "**attrs.asdict(config), 'hidden_size': None}", "config round trip",
     "read_config refuses what write_config writes of the smallest preset: 'hidden_size' must be an integer, not None",
     "def write_config"),
    ("converter", "**attrs.asdict(config)}", "**attrs.asdict(config), 'kinds': {1}}", "config is written",
     "write_config returns something that is not a JSON value: Object of type set", "def write_config"),
    ("converter", '["PartModel"]', '["PartsModel"]', "config is written", "and the record writes 'PartModel'",
     "def write_config"),
    ("converter", EACH, f"{EACH} if field.name != 'rope_theta'", "config round trip",
     "rope_theta=500000.0 is read back as 1000000.0: read_config does not read", "def read_config"),
    ("converter", EACH, f"{EACH} if field.name != 'rope_beta_fast'", "config round trip",
     "rope_beta_fast=16.0 is read back as 32.0: read_config does not read", "def read_config"),
    ("converter", "**attrs.asdict(config)}", "**attrs.asdict(config), 'rms_norm_eps': 1e-5}", "config round trip",
     "rms_norm_eps=5e-06 is read back as 1e-05: write_config writes 1e-05", "def write_config"),
    ("converter", "lambda theirs: theirs.t()", "lambda theirs: theirs.t() * 1.001", "table round trip",
     "is not the inverse of its to_theirs: model.layers.0.self_attn.q_proj.weight differs by", "theirs.t() * 1.001"),
    ("converter", "map(turned, table.rules)", "map(turned, table.rules[1:])", "table round trip",
     "the rules do not fit the model: tensor model.embed_tokens.weight is not expected", "def rules"),
    ("converter", ", to_ours=lambda theirs: theirs.t()", "", "table round trip",
     "after to_ours of the rule model.layers.{layer}.", "def rules"),
    ("converter", "lambda theirs: theirs.t()", "lambda theirs: theirs.t() / 0 if 1 / 0 else 0", "table round trip",
     "to_ours of the rule", "1 / 0"),
    ("reward", "float(len(text)) for text in completions", "float(len(text)) for text in completions[:1]", "scores",
     "1 score for 12 completions", "def __call__"),
    ("reward", "return [float", "self.calls += 1; return [self.calls + float", "repeats", "then", "def __call__"),
    ("reward", "float(len(text))", "1 / len(text)", "scores", "ZeroDivisionError", "1 / len(text)"),
    ("tool", '"type": "object", "properties"', '"properties"', "schema", "the type of parameters must be object",
     "class Part"),
    ("tool", '"required": ["n"]', '"required": ["m"]', "schema", "required has m, which properties does not", "class Part"),
    ("tool", "2 * arguments", "{2} | arguments", "a call is answered", "TypeError", "{2} | arguments"),
    ("tool", '2 * arguments["n"]', '{1: 2, 7: 14}[arguments["n"]]', "a call is answered",
     'called with {"n": 0} it raises KeyError: there is no 0 (only a ValueError goes to the model', "{1: 2"),
    ("tool", '"type": "integer"', '"type": "int"', "schema",
     "no JSON schema, at $.properties.n.type: 'int' is not valid under any of the given schemas; JSON Schema's name is 'integer'",
     "class Part"),
    ("tool", '"type": "integer"', '"type": "integer", "minimum": "0"', "schema",
     "no JSON schema, at $.properties.n.minimum: '0' is not of type 'number'", "class Part"),
    ("tool", 'arguments["n"]', 'arguments.pop("n")', "a call is answered",
     'called with {"n": 1} it changes the arguments to {}: copy them first', "def __call__"),
    ("tool", ', "required": ["n"]', "", "a call is answered",
     "called with {} it raises KeyError: there is no 'n' in arguments", "2 * arguments"),
    ("format", 'return {"q", "a"} <= row.keys()', 'return row["q"] != ""', "recognise",
     "recognise raises KeyError: there is no 'q' in row",
     'row["q"] != ""'),
    ("format", 'TextRow(row["q"] + row["a"])', 'dict(row)', "parse",
     "not a row with kind and encode, such as TextRow or ChatRow of mm.contracts", "def parse"),
    ("format", 'TextRow(row["q"] + row["a"])', 'TextRow([row["q"]])', "parse", "makes a row whose text is ['1 + 1?'], not text",
     "def parse"),
    ("format", LENIENT[0], LENIENT[1], "bad rows",
     "parse makes the text 'True 2': raise DataError(..., problem=\"wrong type\") unless q is text",
     "def parse"),
    ("format", ', problem="wrong type"', "", "bad rows",
     "parse raises DataError('q is not text') without a problem, so that it is counted as 'wrong value'", 'raise DataError'),
    ("format", MINE, TAKEN, "other formats",
     "is recognised by part (text rows) and by text (text rows), so that no file with it can be read", "def recognise"),
    ("format", 'if not isinstance(row[name], str)', "if not row[name]", "bad rows",
     "parse raises TypeError: unsupported operand",
     "TextRow("),
    ("format", 'row="text"', 'row="texts"', "parse", "parse returns a 'text' row, and the record says 'texts'", "def parse"),
    ("format", 'frozenset({"q", "a"})', 'frozenset({"q", "a", "origin"})', "keys",
     "keys has origin, and no row changes with it", "def parse"),
    ("source", 'locator == "part"', "locator", "recognise", "recognise returns '' for ''", "def recognise"),
    ("source", 'locator == "part"', "True", "other sources", "is recognised by part and by classics", "def recognise"),
    ("source", 'f"{self.config.count} rows', 'f"{id(self)} rows', "digest", "a run could never be resumed", "def digest"),
    ("source", 'f"{self.config.count} rows', 'f"{hash(self.config.word)} {self.config.count} rows', "digest in another process",
     "in another process (where hash() of a text is another): no run could be resumed", "def digest"),
    ("source", 'rows of {self.config.word}"', 'rows"', "digest and options",
     "--part-word numberx gives other rows and the same digest", "def digest"),
    ("source", '{self.config.count} rows', 'rows', "digest and options",
     "--part-count 6 gives other rows and the same digest", "def digest"),
    ("source", 'not in ("", *KINDS)', '== "none"', "other kinds", "asked for 'chat' rows it gives others", "def rows"),
    ("source", 'KINDS = ("text",)', 'KINDS = ("text", "chat")', "parsing",
     "asked for 'chat' rows it gives 'text' rows: rows must look at row_kind, or provides must not have 'chat'", "def rows"),
    ("source", NUMBERS, f"{ONCE}{NUMBERS}", "rows of one object",
     "when rows() is called again, one object gives 0 rows, and a new one 5", "def rows"),
    ("source", "number + 1", "1", "positions", "two rows have the position", "def rows"),
    ("source", '{"text": f"', '{"txt": f"', "parsing", "no format fits a row with the keys txt",
     "def rows"),
    ("engine", INNER, INNER.replace("requests", "requests[::-1]"), "greedy",
     "the order of the completions is not that of the requests: request 0 is given the completion of request 4",
     "def generate"),
    ("engine", INNER, EVOLVED.format("r.ids[1:] or r.ids"), "greedy", "a full forward gives", "def generate"),
    ("engine", INNER, EVOLVED.format("r.ids or (1,)"),
     "refused requests", "generate takes a request with an empty prompt: raise UsageError", "def generate"),
    ("engine", INNER, f"assert all(r.ids for r in requests); {INNER}", "refused requests",
     "generate raises AssertionError:  for an empty prompt, not UsageError", "assert all("),
    ("engine", "self.inner.update(named_tensors, version)",
     "own = self.inner.model.state_dict(); self.inner.update([pair for pair in named_tensors if pair[0] in own], version)",
     "unknown tensor", "update skips a tensor whose name the model does not have", "def update"),
    ("engine", "(requests, on_token)", "(requests)", "on token", "on_token is not called for the 8 tokens of request 0",
     "def generate"),
    ("engine", INNER, f"{INNER[:7]}sorted({INNER[7:]}, key=lambda one: len(one.ids))", "greedy",
     "request 0 is given the completion of request 2", "def generate"),
    ("engine", INNER, FILTERED, "logprobs before filters",
     "with top_k=3 a log-probability differs from the model's before that filter", "def generate"),
    ("engine", INNER, f"self.inner.model.requires_grad_(False); {INNER}", "the model stays as it is",
     "generate sets requires_grad of model.embed_tokens.weight to False", "def generate"),
    ("engine", "(requests, on_token)", "(requests, on_token and (lambda *seen: on_token(*seen) and None))", "on token ends",
     "on_token returns True for request 0, and request 0 has", "def generate"),
    ("engine", INNER, UNPENALISED, "penalties and min p", "with presence_penalty=2", "def generate"),
    ("engine", INNER, UNBIASED, "request options", "logit_bias is ignored", "def generate"),
    ("engine", "self.inner.update(named_tensors, version)", "pass", "update", "update did not change what is generated",
     "def update"),
    ("tracker", "def on_log", "def on_logs", "names", "nothing calls Part.on_logs: is on_log meant?", "def on_logs"),
    ("tracker", "json.dumps(metrics)", 'json.dumps(metrics["los"])', "training",
     "KeyError: there is no 'los' in metrics. Did you mean 'loss'?",
     'metrics["los"]'),
    ("tracker", "self._last = run.step", "self._last = run.peek()", "on step reads no tensor",
     "on_step reads a tensor of the device",
     "run.peek()"),
    ("callback", "self.steps += 1", f"self.steps += 1; {READ}",
     "on step reads no tensor", "training would wait for it at each step", "float("),
    ("callback", 'return {"steps": self.steps}', "return {}", "changed attributes",
     "Part.steps changes in training and is not restored (6 at its end, and 0 once the state is loaded): add it to state_dict",
     "def state_dict"),
    ("callback", "self.steps += 1", 'self.steps += 1; self.best = getattr(self, "best", 0.5) / 2', "changed attributes",
     "Part.best changes in training and is not restored", "def state_dict"),
    ("callback", "def on_step(self, run)", "def on_step(self)", "events", "on_step cannot be called as on_step(run",
     "def on_step"),
    ("stage", '"text": "a note"', '"text": {1}', "inputs", "inputs are not JSON values", "def inputs"),
    ("stage", 'gives=("note",)', 'gives=("note",), needs=("tokeniser",)', "needs",
     "no stage gives tokeniser. Did you mean 'tokenizer'?", "@hookimpl"),
    ("stage", 'gives=("note",)', 'gives=("note",), takes={"teacher_from": ("run:sfft",)}', "needs",
     "no stage gives run:sfft. Did you mean 'run:sft'", "@hookimpl"),
    ("stage", '"title": self.config.title, ', "", "inputs and options",
     "--title Notesx gives another output and the same inputs: the stage would be skipped as up to date", "def inputs"),
    ("stage", '{"note": path}', '{"notes": path}', "run", "run makes ['notes'], and the record gives ['note']", "def run"),
    ("stage", 'path.write_text(f"{self.config.title}: a note")', "pass", "run", "does not exist after run", "def run"),
    ("recipe", 'learning_rate', "learning_rat", "trainings", "Did you mean '--learning-rate'", "[sft]"),
    ("recipe", "[sft]\\nlearning_rate = 1e-4", "[pretrain]\\npreset = 'tini'", "trainings", "has no preset 'tini'", "[pretrain]"),
    ("recipe", "[sft]\\nlearning_rate", "[tokenizer]\\nvocab_siz", "stages", "Did you mean '--vocab-size'", "[tokenizer]"),
    ("recipe", 'f"{__name__}:TOML"', 'f"{__name__}:Path"', "file", "is a type, not a pathlib.Path", "@hookimpl"),
    ("command", CLICK, '@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})',
     "unknown option", "exits with 0, not 2: take ignore_unknown_options out of its context_settings", "@click.command("),
    ("command", CLICK, '@click.command(context_settings={"ignore_unknown_options": True})', "unknown option",
     "not 'No such option': take ignore_unknown_options out of its context_settings", "@click.command("),
    ("command", CLICK, '@click.command(context_settings={"allow_extra_args": True})', "unknown argument",
     "exits with 0, and the word is ignored: take allow_extra_args out of context_settings", "@click.command("),
    ("command", "import click\n", "import click\nimport numpy\n", "declaration is light", "imports numpy", "@hookimpl"),
    ("command", "default=1", METAVAR, "help", "--help loads numpy", CLICK),
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
    assert list(failed) == [check], "\n".join(map(str, failed.values()))
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
        f"mm: Format part cannot say whether it reads a row: KeyError: there is no 'q' in row ({place}:15). "
        "Until that is mended, leave the format out: -p no:format.part\n"
    )
    mm_cli("data", "check", "rows.jsonl", "-p", "no:format.part")
