"""A start of the ranks continues the run that an earlier start of the same launch has saved, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm.core.errors import UsageError
from mm.core.run_folder import RunFolder
from mm.runtime.runs.attempt import agent, attempt, continues, is_ours, marks

RANK = {"RANK": "1", "MASTER_ADDR": "host0", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "a"}
AGAIN = {**RANK, "TORCHELASTIC_RESTART_COUNT": "1"}
JOB = {**RANK, "SLURM_JOB_ID": "7"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def created(folder: RunFolder, environ: dict[str, str], *, saved: bool = True) -> None:
    """The run as the main rank has created it, together with a rank of another machine."""
    (folder.checkpoints / "step-00000002").mkdir(parents=True) if saved else folder.path.mkdir()
    manifest = {"state": "failed", **marks(["host1:2:a", agent(environ)], environ)}
    (folder.path / "manifest.json").write_text(json.dumps(manifest))


def test_a_restart_continues_what_is_saved(folder: RunFolder) -> None:
    assert not continues(folder, RANK)
    created(folder, RANK)
    assert continues(folder, AGAIN) and not continues(folder, {})


def test_a_restart_begins_anew_what_is_not_saved(folder: RunFolder) -> None:
    created(folder, RANK, saved=False)
    assert is_ours(folder, AGAIN) and not continues(folder, AGAIN)


def test_another_launch_is_another_run(folder: RunFolder) -> None:
    created(folder, RANK)
    assert not is_ours(folder, {**AGAIN, "TORCHELASTIC_RUN_ID": "b"})


def test_a_job_that_is_queued_again_continues_and_a_second_command_in_it_does_not(folder: RunFolder) -> None:
    created(folder, JOB)
    second = {**JOB, "TORCHELASTIC_RUN_ID": "b", "MASTER_PORT": "29501"}
    assert not is_ours(folder, second)
    again = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    assert continues(folder, {**second, **again}) and continues(folder, again)  # of several ranks, or of one process


def test_a_training_of_one_process_knows_its_job_and_nothing_outside_one(folder: RunFolder) -> None:
    created(folder, {"SLURM_JOB_ID": "7"})
    assert continues(folder, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert not is_ours(folder, {"SLURM_JOB_ID": "7"}) and not is_ours(folder, {})
    assert marks([""], {}) == {}


def test_two_agents_that_count_restarts_alone_name_one_start() -> None:
    own = {**RANK, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    assert attempt(own) == attempt({**own, "TORCHELASTIC_RESTART_COUNT": "3"}) != attempt({**own, "MASTER_PORT": "29501"})
    assert attempt(RANK) != attempt(AGAIN) and attempt({}) == ""


def test_two_agents_with_one_store_for_all_starts_name_none() -> None:
    shared = {**RANK, "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2"}
    assert attempt(shared) == attempt(RANK)
    with pytest.raises(UsageError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        attempt({**shared, "TORCHELASTIC_MAX_RESTARTS": "1"})
