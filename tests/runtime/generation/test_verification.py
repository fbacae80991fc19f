"""`mm convert --verify`: what is compared, how a difference is named, and programs that fail."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from gguf_models import made

import mm
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.runtime.generation.verification.cases import LENGTH, Case, answered
from mm.runtime.generation.verification.compare import Verdict, compare
from mm.runtime.generation.verification.results import read_results
from mm.runtime.generation.verification.verifier import VerificationFailed
from mm.runtime.models.folder import LoadedModel, save_model_folder
from mm.runtime.models.sample_texts import logits_of
from mm.runtime.models.storage import seal
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.pytest_plugin import CommandLine

BOUND = 1e-4
# answers as our own model does, but for CHANGE in the second conversation
PROGRAM = '''
import json, sys
job = json.load(open(sys.argv[1]))
chats = []
for number, chat in enumerate(job["chats"], 1):
    stop = "stop" if chat["reply"][-1] in job["stop"] else "length"
    one = {"text": chat["text"], "ids": chat["ids"], "reply": chat["reply"], "stop": stop,
           "logprobs": [[None] * len(asked) for asked in chat["asked"]]}
    if number == 2:
        CHANGE
    chats.append(one)
    print("done", number, flush=True)
json.dump({"engine": "parrot 1.0", "chats": chats}, open(sys.argv[2], "w"))
'''


@pytest.fixture(scope="module")
def loaded(installed: PluginManager) -> LoadedModel:
    return made("3", installed, Tokenizer.load(), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def model(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified") / "model"
    folder.mkdir()
    save_model_folder(folder, loaded)
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def cases(loaded: LoadedModel, installed: PluginManager) -> list[Case]:
    return answered(installed, loaded, 12)


def result(case: Case, **changes: Any) -> dict[str, Any]:
    """What a program tells that computes as we do, but for the changes."""
    return {
        "text": case.text, "ids": list(case.ids), "reply": list(case.reply), "stop": case.finish_reason,
        "logprobs": [list(values) for values in case.logprobs], **changes,
    }  # fmt: skip


def verdict(cases: list[Case], **changes: Any) -> Verdict:
    """The verdict on a program that tells something else of the first case."""
    results = [result(cases[0], **changes), *map(result, cases[1:])]
    return compare(cases, results, Tokenizer.load(), BOUND)


def test_cases_are_of_all_kinds_and_answered_greedily(cases: list[Case], loaded: LoadedModel) -> None:
    assert {case.thinking for case in cases} == {None, True, False}
    assert any(case.tools for case in cases) and not all(case.tools for case in cases)
    assert any(case.messages[-1]["role"] == "tool" for case in cases)
    assert any(message["role"] == "system" and message["content"] for case in cases for message in case.messages)
    assert any(sum(message["role"] == "user" for message in case.messages) > 1 for case in cases)
    for case in cases[:4]:
        assert list(case.ids) == loaded.tokenizer.encode(case.text)
        logprobs_TV = logits_of(loaded.model, [*case.ids, *case.reply]).double().log_softmax(-1)
        for place, (asked, values) in enumerate(zip(case.asked, case.logprobs, strict=True)):
            row_V = logprobs_TV[len(case.ids) - 1 + place]
            assert case.reply[place] == asked[0] == int(row_V.argmax())
            assert values == pytest.approx(row_V[list(asked)].tolist(), abs=1e-5)
        ended = case.reply[-1] in {loaded.tokenizer.eos_id, loaded.tokenizer.pad_id}
        assert case.finish_reason == ("stop" if ended else "length") and (ended or len(case.reply) == LENGTH)


def test_an_equal_program_has_nothing_different(cases: list[Case]) -> None:
    found = verdict(cases)
    tokens = sum(len(case.reply) for case in cases)
    assert (found.prompts, found.replies, found.stops, found.tokens) == (12, 12, 12, tokens)
    assert (found.first, found.largest, found.ties) == ("", 0.0, 0)


def test_the_first_difference_is_named(cases: list[Case]) -> None:
    case = cases[0]
    place = next(place for place in range(len(case.reply)) if case.lead(place) > 2 * BOUND)
    other = [*case.reply[:place], case.asked[place][1], *case.reply[place + 1 :]]
    rows = [list(values) for values in case.logprobs]
    rows[1][2] += 2 * BOUND
    differences = {
        f"the chat template at character {len(case.text)}: ours": {"text": f"{case.text}!"},
        f"token 3 of the prompt: ours {case.ids[3]} (": {"ids": [*case.ids[:3], 5, *case.ids[4:]]},
        f"token {place} of the reply: ours {case.reply[place]} (": {"reply": other},
        "the reason to stop: ours": {"stop": "other"},
        "at token 1 of the reply: ours": {"logprobs": rows},
    }
    for text, changes in differences.items():
        found = verdict(cases, **changes)
        assert found.first.startswith(f"conversation 1 ({case}): ") and text in found.first
        assert found.prompts == len(cases) - ("text" in changes or "ids" in changes)


def test_a_log_probability_that_is_no_number_is_a_difference(cases: list[Case]) -> None:
    rows = [list(values) for values in cases[0].logprobs]
    rows[0][0] = math.nan
    assert "theirs nan" in verdict(cases, logprobs=rows).first
    rows[0][0] = -math.inf
    assert "theirs -inf" in verdict(cases, logprobs=rows).first


def test_a_reply_that_parts_where_two_tokens_are_equally_likely_is_a_tie(cases: list[Case]) -> None:
    near = [(values[0], values[0] - BOUND, *values[2:]) for values in cases[0].logprobs]
    tied = [attrs.evolve(cases[0], logprobs=tuple(near)), *cases[1:]]
    other = [cases[0].asked[0][1], *cases[0].reply[1:]]
    found = verdict(tied, reply=other)
    assert (found.first, found.ties, found.replies) == ("", 1, len(cases) - 1)
    assert "1 parts at a tie" in "\n".join(found.lines("x"))


def test_a_program_may_tell_less(cases: list[Case]) -> None:
    """Texts instead of ids, no prompt, no log-probabilities."""
    text = Tokenizer.load().decode(cases[0].reply)
    silent = [[None] * len(values) for values in cases[0].logprobs]
    told: dict[str, Any] = {"text": None, "ids": None, "reply": None, "reply_text": text, "logprobs": silent}
    found = verdict(cases, **told)
    assert (found.first, found.told, found.prompts, found.replies) == ("", len(cases) - 1, len(cases) - 1, len(cases))
    assert "of the reply" in verdict(cases, **told | {"reply_text": f"x{text}"}).first
    alone = compare(cases[:1], [result(cases[0], **told)], Tokenizer.load(), BOUND).lines("x")
    assert [line.split()[-2:] for line in (alone[1], alone[4])] == [["not", "told"]] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("one['text'] = 'x' + one['text']", "the chat template at character 0"),
        ("one['reply'] = [7]", "of the reply: ours"),
        ("sys.exit('no such engine')", "ended with exit code 1:\n  no such engine"),
        ("break", "chats is not a list of results for 50 conversations"),
    ],
)
def test_the_command_names_what_differs_and_keeps_the_file(
    change: str, said: str, model: Path, mm_cli: CommandLine, tmp_path: Path
) -> None:
    program = tmp_path / "parrot.py"
    program.write_text(PROGRAM.replace("CHANGE", change))
    shown = mm_cli("convert", model, tmp_path / "out", "--to", "qwen3", "--verify", program, code=1)
    assert said in shown.err and (tmp_path / "out/config.json").exists()


def test_the_verdict_is_printed(model: Path, mm_cli: CommandLine, tmp_path: Path) -> None:
    program = tmp_path / "parrot.py"
    program.write_text(PROGRAM.replace("CHANGE", "pass"))
    shown = mm_cli("convert", model, tmp_path / "out", "--to", "qwen3", "--verify", program)
    assert "parrot 1.0:\n  prompts           50 of 50 equal\n  greedy replies    50 of 50 equal" in shown.err
    assert "log-probabilities not told" in shown.err


@pytest.mark.parametrize(
    ("to", "verify", "said"),
    [
        ("qwen3", "transfomers", "unknown engine 'transfomers'. Did you mean 'transformers'"),
        ("qwen3", "onnxruntime", "it does not read qwen3. It reads onnx."),
        ("native", "transformers", "it does not read native. It reads a Hugging Face layout"),
        ("qwen3", "missing.py", "there is no such program"),
        ("qwen3", "transformers:/nowhere/python", "no transformers in /nowhere/python. Name an interpreter that has it"),
        ("qwen3", "vllm:http://localhost:1", "is an address. Name an interpreter that has vllm"),
        ("gguf", "llama.cpp:/nowhere", "/nowhere is neither a llama-server nor a folder with node-llama-cpp"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_written(
    to: str, verify: str, said: str, model: Path, tmp_path: Path, installed: PluginManager
) -> None:
    with pytest.raises(UsageError) as error:
        mm.convert(model, tmp_path / "out", to=to, verify=verify, workspace=tmp_path, plugins=installed, quiet=True)
    assert said in str(error.value) and not (tmp_path / "out").exists()


def test_a_program_is_ended_with_what_it_started(model: Path, tmp_path: Path, installed: PluginManager) -> None:
    program, left = tmp_path / "parrot.py", tmp_path / "left"
    start = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 5; touch {left}']); sys.exit(3)"
    program.write_text(PROGRAM.replace("CHANGE", start))
    with pytest.raises(VerificationFailed, match="exit code 3"):
        mm.convert(model, tmp_path / "out", verify=str(program), workspace=tmp_path, plugins=installed, quiet=True)
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        assert str(left).encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2", "3-moe"])
def test_transformers_is_a_verifier(kind: str, installed: PluginManager, tmp_path: Path, mm_cli: CommandLine) -> None:
    (tmp_path / "model").mkdir()
    save_model_folder(tmp_path / "model", made(kind, installed, Tokenizer.load(), max_position_embeddings=1024))
    seal(tmp_path / "model")
    shown = mm_cli("convert", tmp_path / "model", tmp_path / "out", "--dtype", "bf16", "--verify", "transformers")
    assert "prompts           50 of 50 equal" in shown.err and "greedy replies" in shown.err


FORM = [
    ({"stop": None}, "stop is neither"),
    ({"text": 5}, "text is neither a text nor null"),
    ({"ids": "abc"}, "ids is neither a list of ids nor null"),
    ({"reply": [-1]}, "reply is neither a list of ids nor null"),
    ({"reply": None}, "reply is null, and reply_text is not a text"),
    ({"logprobs": [["x"]]}, "logprobs has not"),
]


@pytest.mark.parametrize(("changes", "message"), FORM)
def test_a_value_of_another_form_is_named(changes: dict[str, Any], message: str, cases: list[Case], tmp_path: Path) -> None:
    job, out = {"chats": [case.job() for case in cases]}, tmp_path / "out.json"
    chats = [result(cases[0]), result(cases[1], **changes), *map(result, cases[2:])]
    out.write_text(json.dumps({"engine": "parrot", "chats": chats}))
    with pytest.raises(ValueError, match=re.escape(f"chats[1].{message}")):
        read_results(out, job)


@pytest.mark.parametrize("text", ["not json", "[]", '{"engine": "parrot"}', '{"engine": "parrot", "chats": [1]}', "[" * 10**5])
def test_results_that_are_no_table_of_chats_are_refused(text: str, cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text(text)
    with pytest.raises(ValueError):
        read_results(out, {"chats": [cases[0].job()]})


def test_log_probabilities_that_are_not_told_are_no_difference(model: Path, tmp_path: Path, mm_cli: CommandLine) -> None:
    program = tmp_path / "parrot.py"
    program.write_text(PROGRAM.replace("CHANGE", "one['logprobs'] = None"))
    found = mm_cli("convert", model, tmp_path / "out", "--to", "qwen3", "--verify", program)
    assert "log-probabilities not told" in found.err, found.err


@pytest.mark.parametrize("apart", ["False", "True"])
def test_a_program_that_ends_and_leaves_a_process_is_not_waited_for(
    apart: str, model: Path, tmp_path: Path, mm_cli: CommandLine
) -> None:
    program, left = tmp_path / "parrot.py", tmp_path / "left"
    program.write_text(
        "import subprocess, sys\n"
        f"one = subprocess.Popen(['sleep', '3000'], start_new_session={apart})\n"
        f"open({str(left)!r}, 'w').write(str(one.pid)); sys.exit(3)\n"
    )
    found = mm_cli("convert", model, tmp_path / "out", "--to", "qwen3", "--verify", program, code=1)
    assert "ended with exit code 3" in found.err, found.err
    if apart == "True":  # out of reach, but it does not hold up the command
        os.kill(int(left.read_text()), signal.SIGKILL)
        return
    stat = Path(f"/proc/{left.read_text()}/stat")
    while stat.exists() and ") Z" not in stat.read_text():  # a signal takes a moment; the test's limit ends this
        time.sleep(0.05)
