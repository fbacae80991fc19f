"""Layers to one Run: precedence with sources, foreign and unknown options, prefixes, collisions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mm as package
from mm.cli import mm
from mm.core.config.composition import Composition
from mm.core.errors import UsageError
from mm.core.layers import Layer, argument_layer, environment_layer
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.core.run import read_toml
from mm.core.workspace import Workspace
from mm.runtime.runs import api
from mm.testing import plugin_manager

PARTS = """
import attrs
from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import AlgorithmSpec, Needs, TrackerSpec

@attrs.frozen(kw_only=True)
class Config:
    beta: float = option(0.1, help="Beta.")
    gamma: float = option(1.0, help="Gamma.")

@attrs.frozen(kw_only=True)
class Other:
    zeta: int = option(1, help="Zeta.")

@attrs.frozen(kw_only=True)
class Clash:
    learning_rate: float = option(1.0, help="A common name.")

@attrs.frozen(kw_only=True)
class Csv:
    path: str = option("out.csv", help="File.")

needs = lambda config: Needs(data="text")
ASKED = []

def counted(config):
    ASKED.append(config)
    return Needs(data="text", roles=("policy", "reference"))

@hookimpl
def mm_algorithms():
    real = "mm.plugins.algorithms.next_token:NextToken"
    yield AlgorithmSpec(name="counted", summary="Counts.", target=real, config=Config, needs=counted)
    yield AlgorithmSpec(
        name="mine", summary="Mine.", target="a:b", config=Config, needs=needs,
        defaults={"learning_rate": 3e-4, "seed": 5, "epochs": 4, "gamma": 2.0})
    yield AlgorithmSpec(name="other", summary="Other.", target="a:b", config=Other, needs=needs)
    yield AlgorithmSpec(name="clash", summary="Clash.", target="a:b", config=Clash, needs=needs)

@hookimpl
def mm_trackers():
    yield TrackerSpec(name="my-csv", summary="CSV.", target="a:b", config=Csv)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> PluginManager:
    path = tmp_path_factory.mktemp("parts") / "resolve_parts.py"
    path.write_text(PARTS)
    return plugin_manager(str(path))


@pytest.fixture
def asked(plugins: PluginManager) -> list[Any]:
    """The configs that the needs of the algorithm `counted` were asked with."""
    found: list[Any] = sys.modules["mm_plugin_resolve_parts"].ASKED
    found.clear()
    return found


def layer(**values: object) -> Layer:
    return Layer(origin="argument", values={"algo": "mine", **values})


def message(plugins: PluginManager, *layers: Layer) -> str:
    with pytest.raises(UsageError) as error:
        Composition(plugins, layers).resolve()
    return str(error.value)


def test_precedence_and_sources(plugins: PluginManager, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('algo = "mine"\nlearning-rate = 0.2\nseed = 7\nbeta = 0.4\nclip_norm = 9\n')
    layers = [
        Layer(origin="command line", values={"learning_rate": "0.4"}, textual=True),
        environment_layer({"MM_TRAIN_LEARNING_RATE": "0.3", "MM_TRAIN_SEED": "8", "MM_TRAIN_CLIP_NORM": "0.5", "HOME": "/"}),
        Layer(origin=str(path), values=read_toml(path)),
    ]
    found = Composition(plugins, layers).resolve()
    train, sources = found.run.train, found.sources
    assert (train.learning_rate, sources["learning_rate"]) == (0.4, "command line")
    assert (train.seed, sources["seed"]) == (8, "environment")
    assert (train.clip_norm, sources["clip_norm"]) == (0.5, "environment")
    assert (found.run.algorithm.beta, sources["beta"]) == (0.4, str(path))
    assert (train.epochs, sources["epochs"]) == (4, "defaults of mine")
    assert (found.run.algorithm.gamma, sources["gamma"]) == (2.0, "defaults of mine")
    assert (train.log_interval, sources["log_interval"]) == (10, "default")
    assert found.warnings == ()
    assert set(sources) == set(found.run.values())


def test_a_preset_stands_between_the_user_and_the_class(plugins: PluginManager) -> None:
    found = Composition(plugins, [layer(arch="dense", preset="tiny", dense_num_hidden_layers=3)]).resolve()
    sizes, sources = found.run.architecture, found.sources
    assert (sizes.num_hidden_layers, sources["dense_num_hidden_layers"]) == (3, "argument")
    assert (sizes.hidden_size, sources["dense_hidden_size"]) == (96, "preset tiny")
    assert (sizes.rope_theta, sources["dense_rope_theta"]) == (1e6, "default")
    assert "has no preset 'tinny'. Did you mean 'tiny'" in message(plugins, layer(arch="dense", preset="tinny"))
    assert "--preset tiny needs --arch" in message(plugins, layer(preset="tiny"))


def test_everything_is_computed_once(plugins: PluginManager, asked: list[Any]) -> None:
    given = Composition(plugins, [layer(algo="counted", beta=0.3, arch="dense", preset="tiny")])
    given.check()
    chosen = given.choosing({"data": (("x.jsonl",), "data: x.jsonl")}).choosing({"run": ("r", "run: r")})
    found = chosen.resolve()
    assert (found.run.select.data, found.sources["data"]) == (("x.jsonl",), "chosen")
    assert list(chosen.chosen.values()) == [(("x.jsonl",), "data: x.jsonl"), ("r", "run: r")]
    # what the choices leave as it was is the same object, and the needs are the same call's
    assert asked == [found.run.algorithm] and found.run.needs is given.needs
    assert found.run.train is given.resolve().run.train and found.run.parts["role.reference"] is given.read(given.sections[2])
    assert found.run.select != given.selection and given.resolve().run.select is given.selection
    other = chosen.having([layer(algo="counted", beta=0.4, arch="dense", preset="tiny")]).resolve()
    assert [config.beta for config in asked] == [0.3, 0.4] and other.run.needs is not given.needs
    assert other.run.train is found.run.train and other.run.architecture is found.run.architecture
    assert other.run.select.data == ("x.jsonl",)


def test_a_line_is_composed_once(plugins: PluginManager, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    options = {"algo": "counted", "arch": "dense", "preset": "tiny", "data": tmp_path / "rows.jsonl", "beta": 0.3}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    line = CliRunner(env={"MM_WORKSPACE": str(tmp_path)}).invoke(mm, ["train", *words, "--dry-run"], obj=plugins)
    assert line.exit_code == 0, line.output
    assert [config.beta for config in asked] == [0.3]


def test_a_backend_that_is_left_open_in_words_is_chosen_too(plugins: PluginManager, tmp_path: Path) -> None:
    given = [layer(backend="auto", arch="dense", preset="tiny", data=("x.jsonl",))]
    found = api.new_run(Composition(plugins, given), Workspace(tmp_path), lambda line: None)
    assert found.run.select.backend in [spec.name for spec in plugins.specs(BackendSpec)]


def test_an_unknown_keyword_of_python_is_named_as_such(plugins: PluginManager) -> None:
    text = message(plugins, argument_layer({"algo": "mine", "dry_run": True}))
    assert text == "No such option: --dry-run. Did you mean '--run'? (from the keyword dry_run)"


def test_an_unknown_option_names_its_origin_and_what_is_near(plugins: PluginManager) -> None:
    hint = "Did you mean '--data' or '--beta'?"
    assert message(plugins, layer(bata=1.0)) == f"No such option: --bata. {hint} (from argument)"
    assert message(plugins, layer(quux=1.0)) == "No such option: --quux. (from argument)"


def test_another_algorithms_option_says_whose_it_is(plugins: PluginManager) -> None:
    text = message(plugins, layer(zeta=2))
    assert text == "--zeta is an option of algorithm 'other'; this run uses algorithm 'mine'. (from argument)"
    assert "--dense-hidden-size is an option of architecture 'dense'" in message(plugins, layer(dense_hidden_size=8))


def test_the_environment_may_hold_what_another_algorithm_would_use(plugins: PluginManager) -> None:
    found = Composition(plugins, [layer(), environment_layer({"MM_TRAIN_ZETA": "2"})]).resolve()
    (warning,) = found.warnings
    assert warning.startswith("MM_TRAIN_ZETA is not used: --zeta is an option of algorithm 'other'")
    text = message(plugins, layer(), environment_layer({"MM_TRAIN_BATA": "2"}))
    assert text.startswith("No such option: --bata. Did you mean '--data' or '--beta'")
    assert text.endswith("(from environment)")


def test_a_wrong_value_names_its_origin(plugins: PluginManager) -> None:
    assert message(plugins, layer(beta="high")) == "--beta (argument): expected a number, got 'high'."
    assert "--seed (environment)" in message(plugins, layer(), environment_layer({"MM_TRAIN_SEED": "x"}))
    assert "--epochs: 'epochs' must be at least 1, not 0" in message(plugins, layer(epochs=0))


def test_other_parts_have_prefixed_options(plugins: PluginManager, tmp_path: Path) -> None:
    flags = {o.flag for o in Composition(plugins, [layer(arch="dense", tracker=("my-csv",))]).options}
    assert {"--beta", "--learning-rate", "--dense-hidden-size", "--my-csv-path"} <= flags
    (tmp_path / "run.toml").write_text('algo = "mine"\narch = "dense"\n[dense]\nhidden_size = 64\n[my-csv]\npath = "a"\n')
    values = {**read_toml(tmp_path / "run.toml"), "tracker": ["my-csv"]}
    run = Composition(plugins, [Layer(origin="file", values=values)]).resolve().run
    assert run.architecture.hidden_size == 64
    assert run.parts["tracker.my-csv"].path == "a"


def test_two_claims_of_one_option_are_an_error(plugins: PluginManager) -> None:
    text = message(plugins, Layer(origin="argument", values={"algo": "clash"}))
    assert text == "--learning-rate is claimed by both train and algorithm.clash."


@pytest.mark.parametrize("parts", [{"reward": ("gt", "gt:2")}, {"reward": ("exact", "exact:2")}, {"tool": ("time", "time")}])
def test_a_part_that_is_given_twice(plugins: PluginManager, parts: dict[str, tuple[str, str]]) -> None:
    ((option, (first, second)),) = parts.items()
    text = message(plugins, Layer(origin="argument", values={"algo": "agent", **parts}))
    assert text == f"--{option} {first} --{option} {second}: {first} is given twice; leave one out."


@pytest.mark.parametrize(("name", "text"), [("absent.toml", "No such file"), ("broken.toml", "not valid TOML")])
def test_a_settings_file_that_cannot_be_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "broken.toml").write_text("a = = 1")
    with pytest.raises(UsageError, match=text) as error:
        read_toml(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_wrong_value_is_heard_of_before_a_missing_model(tmp_path: Path) -> None:
    manager, said = PluginManager.discover(environ={}), []
    with pytest.raises(UsageError, match="--epochs"):
        api.new_run(Composition(manager, [layer(algo="sft", epochs=0)]), Workspace(tmp_path), said.append)
    with pytest.raises(UsageError, match="sft continues a model"):
        api.new_run(Composition(manager, [layer(algo="sft")]), Workspace(tmp_path), said.append)


def test_python_and_the_command_line_refuse_the_same(plugins: PluginManager, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        package.train("pretrain", learning_rat=1.0, plugins=plugins, workspace=tmp_path, quiet=True)
    line = CliRunner().invoke(mm, ["train", "--algo", "pretrain", "--learning-rat", "1.0"], obj=plugins)
    assert str(line.exception) in str(error.value)
    assert "No such option: --learning-rat. Did you mean '--learning-rate'" in str(line.exception)


def test_the_default_architecture_has_its_options_on_the_line(plugins: PluginManager, tmp_path: Path) -> None:
    words = ["train", "--algo", "pretrain", "--dense-hidden-size", "64", "--dry-run", "--data", "x.jsonl"]
    line = CliRunner(env={"MM_WORKSPACE": str(tmp_path)}).invoke(mm, words, obj=plugins)
    assert "No such option" not in str(line.exception)
    assert "is an option of" not in str(line.exception)


def test_one_command_object_serves_many_lines(plugins: PluginManager) -> None:
    first, second = (CliRunner().invoke(mm, ["train", "--algo", a, "--help"], obj=plugins).output for a in ("mine", "other"))
    assert "--beta" in first and "--zeta" not in first
    assert "--zeta" in second and "--beta" not in second
    assert second.count("--learning-rate FLOAT") == 1


def test_the_algorithms_table_of_a_file_and_a_lone_text_for_a_list_are_answered_with_the_cure() -> None:
    plugins = PluginManager.discover(environ={})
    values = {"algo": "sft", "sft_max_steps": 3}
    with pytest.raises(UsageError, match=r"bare: --max-steps, in a file max_steps above all tables. \(from run.toml\)"):
        Composition(plugins, [Layer(origin="run.toml", values=values)]).resolve()
    with pytest.raises(UsageError, match=r"--data \(run.toml\): .* got 'skills'. Write it as \['skills'\]"):
        Composition(plugins, [Layer(origin="run.toml", values={"algo": "sft", "data": "skills"})]).resolve()
