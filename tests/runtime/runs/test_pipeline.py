"""`mm run`: order, skipping, refusing, reporting, and the built-in stages in a small real run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from run_files import write_rows

import mm
from mm.contracts import Stage, StageResult
from mm.core.errors import UsageError
from mm.core.hooks import hookimpl
from mm.core.layers import Layer
from mm.core.options import Option, option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.workspace import Workspace
from mm.plugins.commands.run.command import read_stages
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs.pipeline import Outcome, duration_text, expand, ordered, run_stages, stage_options
from mm.testing import tiny_rows

RAN: list[str] = []


@attrs.frozen(kw_only=True)
class Paint:
    colour: str = option("grey", help="What to paint with.")


class Toy(Stage):
    """Joins what it needs and its colour into a file."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> list[Option]:
        return options_of(Paint, section="toy")

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        return {"colour": self._colour(), "needs": [fingerprint(artifacts[n]) for n in self.spec.needs]}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        return f"would paint {self.spec.name} {self._colour()}"

    def seconds(self, artifacts: Mapping[str, Path]) -> float:
        return 84.0

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        RAN.append(self.spec.name)
        if self._colour() == "broken":
            raise RuntimeError("out of paint")
        out = self.workspace.path / f"{self.spec.name}.txt"
        out.write_text("".join(artifacts[n].read_text() for n in self.spec.needs) + self._colour())
        return StageResult({self.spec.gives[0]: out}, f"painted {self._colour()}", closing=f"{self.spec.name} is dry")

    def _colour(self) -> str:
        return next((layer.values["colour"] for layer in self.layers if "colour" in layer.values), "grey")


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Three that need each other in a row, declared backwards."""
    toy = {"summary": "A toy.", "target": f"{__name__}:Toy", "presets": ("toys",)}
    yield StageSpec(name="roof", needs=("walls", "ground"), gives=("roof",), aliases=("top",), **toy)
    yield StageSpec(name="wall-paper", needs=("ground",), gives=("walls",), **toy)
    yield StageSpec(name="floor", gives=("ground",), **toy)


@pytest.fixture(autouse=True)
def ran() -> list[str]:
    RAN.clear()
    return RAN


def toys(plugins: PluginManager, workspace: Path, *names: str, **options: Any) -> dict[str, Path]:
    return mm.run(list(names) or ["toys"], workspace=workspace, plugins=plugins, quiet=True, **options)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_stages_run_after_what_they_need(plugins: PluginManager, tmp_path: Path, ran: list[str]) -> None:
    artifacts = toys(plugins, tmp_path, "roof", "toys", "top")
    assert ran == ["floor", "wall-paper", "roof"]
    assert artifacts["roof"].read_text() == "greygreygreygrey"
    assert [s.name for s in expand(plugins, ["top"])] == ["roof"]


def test_a_circle_is_refused(plugins: PluginManager) -> None:
    floor, roof = plugins.get(StageSpec, "floor"), plugins.get(StageSpec, "roof")
    with pytest.raises(UsageError, match="floor, roof need each other"):
        ordered([attrs.evolve(floor, needs=("roof",)), roof])


def test_a_stage_waits_for_what_it_does_not_need(plugins: PluginManager) -> None:
    def stage(name: str, **fields: Any) -> StageSpec:
        return StageSpec(name=name, summary="", target="a:b", **fields)

    paint, roof, walls = stage("paint", after=("part:*",)), stage("roof", gives=("part:roof",)), stage("walls", gives=("part:x",))
    assert [s.name for s in ordered([paint, roof, walls])] == ["roof", "walls", "paint"]
    assert [s.name for s in ordered([walls, paint, roof])] == ["walls", "roof", "paint"]
    assert ordered([paint]) == [paint]
    with pytest.raises(UsageError, match="paint, roof need each other"):
        ordered([attrs.evolve(paint, gives=("coat",)), attrs.evolve(roof, after=("coat",))])


def test_the_preset_all_evaluates_before_it_converts(plugins: PluginManager) -> None:
    names = [s.name for s in ordered(expand(plugins, ["all"]))]
    trained = ["agent", "dpo", "grpo", "lora", "ppo", "reason", "spo", "distill"]
    assert names == ["build", "download", "tokenizer", "pretrain", "sft", *trained, "eval", "convert"]


def test_what_is_up_to_date_is_skipped(plugins: PluginManager, tmp_path: Path, ran: list[str]) -> None:
    first = toys(plugins, tmp_path)
    ran.clear()
    assert toys(plugins, tmp_path) == first and ran == []
    toys(plugins, tmp_path, wall_paper_colour="red")
    assert ran == ["wall-paper", "roof"]  # the floor stands, and what rests on the walls does not
    ran.clear()
    toys(plugins, tmp_path, "roof")
    assert ran == []
    first["ground"].unlink()
    toys(plugins, tmp_path, "floor")
    assert ran == ["floor"]
    toys(plugins, tmp_path, "floor", force=True)
    assert ran == ["floor", "floor"]


def test_an_own_option_stands_above_a_shared_one(plugins: PluginManager, tmp_path: Path) -> None:
    artifacts = toys(plugins, tmp_path, colour="blue-", roof_colour="green")
    assert artifacts["roof"].read_text() == "blue-blue-blue-green"


def test_a_missing_need_names_the_stage_that_gives_it(plugins: PluginManager, tmp_path: Path, ran: list[str]) -> None:
    with pytest.raises(UsageError, match=r"Stage roof needs walls: run 'mm run wall-paper -p test_pipeline' first"):
        toys(plugins, tmp_path, "roof")
    with pytest.raises(UsageError, match=r"Stage sft needs run:pretrain: run 'mm run pretrain -p test_pipeline' first"):
        toys(plugins, tmp_path, "full_sft")
    assert ran == []


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["flor"], {}, r"Unknown stage 'flor'\. Did you mean 'floor'"),
        (["pretrian"], {}, r"Unknown stage 'pretrian'\. Did you mean 'pretrain'"),
        (["floor"], {"color": "red"}, r"No such option: --color for the stages floor\. Did you mean '--colour'"),
        (["floor"], {"roof_colour": "red"}, r"No such option: --roof-colour"),
        (["sft"], {"preset": "tiny"}, r"No such option: --preset for the stages sft"),
        (["pretrain"], {"learning_rat": 1.0}, r"No such option: --learning-rat for .*'--learning-rate'"),
        (["grpo"], {"grpo_repetition_penalty": 1.1}, r"--grpo-repetition-penalty: refused in a rollout.* --reward repetition\."),
        (["sft", "agent"], {"stop": "x"}, r"--stop: refused in a rollout.* --max-new-tokens\."),
    ],
)
def test_unknown_names_get_their_close_match(
    names: list[str], options: dict[str, Any], message: str, plugins: PluginManager, tmp_path: Path, ran: list[str]
) -> None:
    layer = Layer(origin="command line", values=options, textual=True)
    with pytest.raises(UsageError, match=message):
        run_stages(plugins, names, Workspace(tmp_path), [layer], force=False, dry_run=False, say=print)
    assert ran == [] and listing(tmp_path) == {}


def test_a_flag_takes_no_stage_for_its_value(plugins: PluginManager) -> None:
    known = stage_options(plugins)
    line = "--compile pretrain --no-sft-compile sft --epochs 2 --data=a --data b"
    names, options = read_stages(line.split(), known)
    assert names == ["pretrain", "sft"]
    assert options == {"compile": "true", "sft_compile": "false", "epochs": "2", "data": ("a", "b")}
    with pytest.raises(UsageError, match="--epochs needs a value"):
        read_stages(["sft", "--epochs", "--compile"], known)
    assert read_stages(["sft", "--bogus", "3", "--other=4", "--strange", "--epochs", "2", "dpo"], known) == (
        ["sft", "dpo"], {"epochs": "2", "bogus": "", "other": "", "strange": ""}
    )  # fmt: skip


def test_a_file_may_hold_tables_of_other_stages(plugins: PluginManager, tmp_path: Path) -> None:
    layer = Layer(origin="demo.toml", values={"roof_colour": "red", "floor_colour": "black"})
    found = run_stages(plugins, ["floor"], Workspace(tmp_path), [layer], force=False, dry_run=False, say=print)
    assert found["ground"].read_text() == "black"


def test_one_text_for_a_list_is_an_argument_s_alone(plugins: PluginManager, tmp_path: Path) -> None:
    """A file says lists as lists, in a stage's table too."""
    assert mm.run("download", workspace=tmp_path, plugins=plugins, quiet=True, download_data="skills") == {}
    for key in ("data", "download_data"):
        layer = Layer(origin="demo.toml", values={key: "skills"})
        with pytest.raises(UsageError, match=r"--data \(demo.toml\): .* got 'skills'. Write it as \['skills'\]"):
            run_stages(plugins, ["download"], Workspace(tmp_path), [layer], force=False, dry_run=False, say=print)


def test_a_failing_stage_is_reported_and_run_again(plugins: PluginManager, tmp_path: Path, ran: list[str]) -> None:
    reports: list[list[Outcome]] = []

    def run(**values: str) -> None:
        layers = [Layer(origin="argument", values=values)]
        run_stages(
            plugins, ["toys"], Workspace(tmp_path), layers, force=False, dry_run=False, say=print, report=reports.append
        )

    with pytest.raises(RuntimeError, match="out of paint"):
        run(wall_paper_colour="broken")
    assert [(o.stage, o.state, o.summary) for o in reports[0]] == [
        ("floor", "done", "painted grey"), ("wall-paper", "failed", "")
    ]  # fmt: skip
    run()
    assert [(o.stage, o.state) for o in reports[1]] == [("floor", "up to date"), ("wall-paper", "done"), ("roof", "done")]
    assert (reports[1][0].summary, reports[1][0].closing) == ("painted grey", "floor is dry")
    assert ran == ["floor", "wall-paper", "wall-paper", "roof"]


def test_a_stage_says_before_it_starts_how_long_it_takes(plugins: PluginManager, tmp_path: Path) -> None:
    said: list[str] = []
    run_stages(plugins, ["floor"], Workspace(tmp_path), [], force=False, dry_run=False, say=said.append)
    assert said[1:] == ["[floor] A toy. Takes about 80 s.", "\nfloor is dry\n"]
    # and ends in the same way if there is nothing to do
    run_stages(plugins, ["floor"], Workspace(tmp_path), [], force=False, dry_run=False, say=said.append)
    assert said[4:] == ["[floor] up to date", "\nfloor is dry\n"]
    times = [None, 3.0, 14.0, 94.0, 100.0, 1000.0]
    assert [" ".join(duration_text(seconds)).removeprefix("Takes ") for seconds in times] == [
        "", "a few seconds.", "about 10 s.", "about 90 s.", "about 2 min.", "about 17 min."
    ]  # fmt: skip


def test_a_dry_run_touches_nothing(
    plugins: PluginManager, tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mm.run(["toys"], workspace=tmp_path, plugins=plugins, dry_run=True)
    assert "[roof] would paint roof grey" in capsys.readouterr().err
    toys(plugins, tmp_path, "floor")
    before = listing(tmp_path)
    mm.run(["toys", "all"], workspace=tmp_path, plugins=plugins, dry_run=True, wall_paper_colour="red")
    said = capsys.readouterr().err
    assert "[wall-paper] would paint wall-paper red" in said and "[sft] mm train --algo sft" in said
    assert listing(tmp_path) == before and ran == ["floor"]


def test_the_built_in_stages_make_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("text", "chat"):
        write_rows(tmp_path / f"{kind}.jsonl", tiny_rows(kind) * 3)
    options = {
        "tokenizer_vocab_size": 320, "tokenizer_data": tmp_path / "text.jsonl",
        "pretrain_data": [tmp_path / "text.jsonl"], "sft_data": str(tmp_path / "chat.jsonl"), "max_steps": 2,
        "preset": "tiny", "pretrain_arch": "dense",
        "pretrain_dense_hidden_size": 32, "pretrain_dense_num_hidden_layers": 2, "global_batch_size": 2,
        "backend": "cpu", "dtype": "fp32", "eval_limit": 8,
    }  # fmt: skip
    stages = ["convert", "eval", "sft", "pretrain", "tokenizer"]
    artifacts = mm.run(stages, workspace=tmp_path, **options)
    assert artifacts.keys() == {"tokenizer", "run:pretrain", "run:sft", "report", "export"}
    assert json.loads((artifacts["export"] / "config.json").read_text())["hidden_size"] == 32
    sft = json.loads((artifacts["run:sft"].parent / "manifest.json").read_text())
    assert (sft["algorithm"], sft["state"], sft["steps"]) == ("sft", "finished", 2)
    said = [mm.generate(artifacts[name], "hello", max_new_tokens=8, temperature=0).text for name in ("run:sft", "export")]
    assert said[0] == said[1] != ""
    report = json.loads(artifacts["report"].read_text())
    assert [sum(figure["total"] for figure in r["skills"]) for r in report["reports"]] == [8, 8]
    kept = json.loads((artifacts["run:sft"].parent / "evals" / "skills-test.json").read_text())
    assert kept == report["reports"][1] and kept["model"]["fingerprint"] == fingerprint(artifacts["run:sft"])
    assert len(report["samples"]) == 8 and (artifacts["report"].parent / "loss.png").exists()
    # three conversations in which the model answers every question, two of them with a second question
    talks = [[turn["role"] for turn in talk] for talk in report["conversations"]]
    assert len(talks) == 3 and all(roles.count("user") >= 2 and roles[-1] == "assistant" for roles in talks)
    written = (artifacts["report"].parent / "report.txt").read_text(encoding="utf-8")
    assert "skills, test split" in written and "Conversations with the model of sft" in written
    shown = capsys.readouterr().err
    assert "skills, test split" not in shown and shown.index("[eval]") < shown.index("[convert]")
    # each stage says what it is for, and how long it takes if an earlier one tells
    assert "[pretrain] Pretrain a new model on text: it learns to continue sentences.\n" in shown
    assert "[sft] Fine-tune the pretrained model on conversations: it learns to answer. Takes a few seconds.\n" in shown
    assert mm.run(stages, workspace=tmp_path, **options) == artifacts
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")] == [
        f"[{name}] up to date" for name in ("tokenizer", "pretrain", "sft", "eval", "convert")
    ]
    again = mm.run(stages, workspace=tmp_path, **options, sft_learning_rate=1e-3)
    assert again["run:pretrain"] == artifacts["run:pretrain"]
    assert again["run:sft"] != artifacts["run:sft"] and again["export"] != artifacts["export"]
    # rows that changed, with the file's name as before
    write_rows(tmp_path / "chat.jsonl", tiny_rows("chat") * 2)
    own = {k: v for k, v in options.items() if not k.startswith(("pretrain", "tokenizer", "preset", "eval"))}
    third = mm.run(["full_sft"], workspace=tmp_path, quiet=True, **own)
    assert third["run:sft"] not in (artifacts["run:sft"], again["run:sft"])
    # a further model is asked alone, and in another way all of them are
    adapted = {**own, "lora_data": own.pop("sft_data"), "eval_limit": 8}
    capsys.readouterr()
    found = mm.run(["lora", "eval"], workspace=tmp_path, **adapted)
    shown = capsys.readouterr().err
    assert [line for line in shown.split("\n") if ": measuring " in line or line.endswith("saved report is used")] == [
        f"pretrain: {artifacts['run:pretrain'].parent.name} is unchanged, so its saved report is used",
        f"sft: measuring {third['run:sft'].parent.name}", f"lora: measuring {found['run:lora'].parent.name}",
    ]  # fmt: skip
    assert "not listed: pretrain, sft, lora." in (found["report"].parent / "report.txt").read_text(encoding="utf-8")
    report = json.loads(found["report"].read_text())
    assert [r["model"]["name"] for r in report["reports"]] == ["pretrain", "sft", "lora"]
    assert report["pictures"] == [str(tmp_path / "reports" / f"{name}.png") for name in ("loss", "lora")]
    assert all(Path(picture).exists() for picture in report["pictures"])
    mm.run(["eval"], workspace=tmp_path, eval_limit=9)
    assert capsys.readouterr().err.count(": measuring ") == 3


def test_a_mixture_of_experts_goes_through_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("text", "chat", "preference"):
        write_rows(tmp_path / f"{kind}.jsonl", tiny_rows(kind) * 3)
    artifacts = mm.run(
        ["tokenizer", "pretrain", "sft", "dpo", "eval", "convert"], workspace=tmp_path, arch="moe", preset="tiny", max_steps=1,
        tokenizer_vocab_size=320, tokenizer_data=tmp_path / "text.jsonl", pretrain_data=tmp_path / "text.jsonl",
        sft_data=tmp_path / "chat.jsonl", dpo_data=tmp_path / "preference.jsonl", moe_hidden_size=32, moe_num_hidden_layers=1,
        global_batch_size=2, backend="cpu", eval_limit=4, max_length=128,
    )  # fmt: skip
    reports = json.loads(artifacts["report"].read_text())["reports"]
    assert [(r["model"]["name"], r["model"]["architecture"]) for r in reports] == [(n, "moe") for n in ("pretrain", "sft", "dpo")]
    assert json.loads((artifacts["export"] / "config.json").read_text())["model_type"] == "qwen2_moe"
    opened = [mm.load(artifacts[name], backend="cpu", dtype="fp32") for name in ("run:sft", "export")]
    said = [model.generate("hello", max_new_tokens=8, temperature=0).text for model in opened]
    assert said[0] == said[1] != ""


def test_a_stage_takes_its_teacher_from_the_stages_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("text", "chat"):
        write_rows(tmp_path / f"{kind}.jsonl", tiny_rows(kind) * 3)
    chat = str(tmp_path / "chat.jsonl")
    shared = {"max_steps": 1, "global_batch_size": 2, "backend": "cpu", "dtype": "fp32", "max_length": 128}
    tuned = {**shared, "sft_data": chat, "distill_data": chat}
    options = {
        **tuned, "tokenizer_vocab_size": 320, "tokenizer_data": tmp_path / "text.jsonl", "preset": "tiny",
        "pretrain_data": tmp_path / "text.jsonl", "pretrain_arch": "dense", "pretrain_dense_hidden_size": 16,
        "pretrain_dense_num_hidden_layers": 1,
    }  # fmt: skip
    stages = ["tokenizer", "pretrain", "sft", "distill"]
    artifacts = mm.run(stages, workspace=tmp_path, **options)

    def settings(path: Path) -> dict[str, Any]:
        return tomllib.loads((path.parent / "run.toml").read_text())

    found = settings(artifacts["run:distill"])
    assert found["from"] == str(artifacts["run:pretrain"]) and found["teacher"]["from"] == str(artifacts["run:sft"])
    mm.run(stages, workspace=tmp_path, **options)
    assert "[distill] up to date" in capsys.readouterr().err
    # another teacher is another training, and one that the user names stands above the stages'
    again = mm.run(["sft", "distill"], workspace=tmp_path, **tuned, sft_learning_rate=1e-3)
    assert settings(again["run:distill"])["teacher"]["from"] == str(again["run:sft"]) != found["teacher"]["from"]
    teacher = str(artifacts["run:pretrain"])
    named = mm.run(["distill"], workspace=tmp_path, **shared, distill_data=chat, distill_teacher_from=teacher)
    assert settings(named["run:distill"])["teacher"]["from"] == str(artifacts["run:pretrain"])
