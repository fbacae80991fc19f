"""What the next command does with the traces of a killed one: the best model that was not recorded, the lock of a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from run_files import weights
from sizes import sizes

from mm.core.errors import UsageError
from mm.core.workspace import RunFolder
from mm.testing.pytest_plugin import CommandLine, Train

SMALL = {
    **sizes(layers=1), "rows": [{"text": f"number {n} " * (1 + n % 5)} for n in range(11)], "run": "a", "max_steps": 8,
    "learning_rate": 1e-2, "eval_ratio": 0.3, "eval_interval": 2, "keep_best": True,
}  # fmt: skip
pytestmark = pytest.mark.mm_train("pretrain", **SMALL)


def best(run: RunFolder) -> tuple[object, bytes]:
    return run.manifest["best"], weights(run.best)


@pytest.mark.parametrize("earlier", [{}, {"best": {"step": 2, "loss": 9.0, "model": "a@best"}}])
def test_a_best_model_that_was_not_recorded_is_recorded_by_the_resume(earlier: dict[str, object], mm_train: Train) -> None:
    whole, run = mm_train(run="whole"), mm_train(stop_after_steps=4)
    manifest = {name: value for name, value in run.manifest.items() if name != "best"}
    (run.path / "manifest.json").unlink()
    (run.path / "run.toml").rename(run.path / "aside")
    run.update_manifest({**manifest, **earlier, "state": "running"})  # as a kill leaves it
    (run.path / "aside").rename(run.path / "run.toml")
    mm_train(resume=True, eval_interval=4, stop_after_steps=5)
    assert run.manifest["best"]["step"] == 4
    resumed = mm_train(resume=True, eval_interval=2)
    (found, model), (expected, other) = best(resumed), best(whole)
    assert {**expected, "model": "a@best"} == found and model == other


@pytest.mark.parametrize("file", ["evaluation.json", "model.safetensors", "index.json"])
def test_a_damaged_best_model_is_reported_and_replaced(file: str, mm_train: Train, mm_cli: CommandLine) -> None:
    run = mm_train(stop_after_steps=4)
    path = run.best / file
    path.write_bytes(bytes(path.stat().st_size))
    said = mm_cli("train", "--resume", "--run", "a").err
    assert re.search(rf"best: \S+{file}\S* .*The best model from here on is kept instead", said.replace("\n", "")), said
    assert run.manifest["best"]["step"] > 4
    assert weights(run.best) == weights(run.model)


def test_the_lock_of_a_name_goes_with_the_next_command_for_it(mm_train: Train, mm_workspace: Path) -> None:
    names = mm_workspace / ".mm/names"
    mm_train(stop_after_steps=2)
    for options in ({"resume": True}, {}):  # then a finished run, whose process was killed at its very end
        (names / "a.lock").write_text("process 1 on elsewhere", encoding="utf-8")
        if options:
            mm_train(**options)
        else:
            with pytest.raises(UsageError, match="Run a exists; it is finished"):
                mm_train()
        assert list(names.iterdir()) == []
