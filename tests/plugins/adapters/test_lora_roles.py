"""LoRA beside other roles: what the reference is, and adapters of roles beside the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drawing
import pytest
from run_files import logged
from safetensors.torch import load_file

import mm
from mm.core.workspace import RunFolder
from mm.testing import tiny_run
from mm.testing.pytest_plugin import CommandLine

SMALL = {"max_steps": 3, "learning_rate": 1e-2, "log_interval": 1, "seed": 5}
DRAWN = {"num_generations": 3, "max_new_tokens": 8, "reward": "vowels", "rows": drawing.PROMPTS, "plugins": drawing.plugins()}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A base and, beside it, an adapter that has learned something."""
    workspace = tmp_path_factory.mktemp("tuned")
    tiny_run(workspace, "pretrain", run="base", **SMALL)
    return tiny_run(workspace, "lora", from_="base", run="tuned", **SMALL)


def continued(tuned: RunFolder, algo: str, name: str, **options: Any) -> RunFolder:
    start = {"from_": "base", "adapter": "lora", "lora_from": tuned.model / "adapter"}
    return tiny_run(tuned.path.parents[1], algo, run=name, **{**SMALL, **start, **options})


def test_the_reference_is_what_the_policy_began_as(tuned: RunFolder) -> None:
    """An adapter that is gone on with is merged first, so that switching off its successor gives the start."""
    run = continued(tuned, "dpo", "preferring", cache_reference=True)
    assert logged(run)[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert logged(run)[0]["chosen_drift"] == pytest.approx(0.0, abs=1e-5)
    assert logged(run)[-1]["margin"] > 0.05
    frozen, start = (load_file(f / "model.safetensors") for f in (next(run.checkpoints.glob("step-*")), tuned.model))
    assert all(frozen[name].allclose(start[name], atol=1e-6) for name in start)
    assert logged(continued(tuned, "grpo", "rewarded", **DRAWN))[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_reference_of_its_own_leaves_the_adapter_as_it_was_read(tuned: RunFolder) -> None:
    run = continued(tuned, "dpo", "apart", reference_from="tuned", max_steps=1, learning_rate=1e-30, weight_decay=0.0)
    assert logged(run)[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    old, new = (load_file(r.model / "adapter/adapter_model.safetensors") for r in (tuned, run))
    assert all(old[name].equal(new[name]) for name in old)


@pytest.mark.parametrize("cached", [False, True])
def test_resuming_after_that_is_exact(cached: bool, tuned: RunFolder) -> None:
    options = {"cache_reference": cached, "max_steps": 4}
    whole = continued(tuned, "dpo", f"whole-{cached}", **options)
    continued(tuned, "dpo", f"cut-{cached}", stop_after_steps=2, **options)
    cut = mm.train("dpo", run=f"cut-{cached}", resume=True, workspace=tuned.path.parents[1], quiet=True)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole.model / file).read_bytes() == (cut.model / file).read_bytes()
    assert logged(whole)[2:] == logged(cut)[2:]


CRITIC = {"critic_adapter": "lora", "critic_lora_rank": 4, "critic_lora_target": ["q_proj"], "critic_learning_rate": 3e-2}


def adapted_critic(workspace: Path, name: str, **options: Any) -> RunFolder:
    own = {**SMALL, **DRAWN, **CRITIC, "adapter": "lora", "lora_rank": 2, "max_steps": 4}
    return tiny_run(workspace, "ppo", from_="base", run=name, **{**own, **options})


def test_a_critic_has_an_adapter_of_its_own(tuned: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = tuned.path.parents[1]
    adapted_critic(workspace, "valued", stop_after_steps=2)
    run = mm.train("ppo", run="valued", resume=True, workspace=workspace, plugins=DRAWN["plugins"])
    start = load_file(workspace / "runs/base/model/model.safetensors")
    critic = load_file(next(run.checkpoints.glob("step-00000004")) / "critic.safetensors")
    factors = {name for name in critic if "lora" in name}
    assert {name.split(".")[-2] for name in factors} == {"q_proj"} and len(factors) == 2 * 4
    assert critic["model.layers.0.self_attn.q_proj.lora_A"].shape[0] == 4
    start["model.embed_tokens.weight"] = start["lm_head.weight"]  # tied, and in the critic not
    assert all(critic[name].equal(start[name]) for name in critic.keys() - factors - {"lm_head.weight"})
    assert critic["lm_head.weight"].any()  # new, and so trained as a whole
    policy = sum(t.numel() for t in load_file(run.model / "adapter/adapter_model.safetensors").values())
    trained = policy + sum(critic[name].numel() for name in (*factors, "lm_head.weight"))
    assert run.manifest["trained_parameters"] == trained
    total = policy + sum(t.numel() for t in (*load_file(run.model / "model.safetensors").values(), *critic.values()))
    said = f"adapter: lora of the policy, lora of the critic; {trained:,} of {total:,} parameters are trained"
    assert said in capsys.readouterr().err
    toml = (run.path / "run.toml").read_text()
    assert '[critic]\nfrom = ""' in toml and '[critic-lora]\nrank = 4' in toml


def test_an_adapted_critic_resumes_exactly(tuned: RunFolder) -> None:
    workspace = tuned.path.parents[1]
    whole = adapted_critic(workspace, "whole-critic")
    adapted_critic(workspace, "cut-critic", stop_after_steps=3)
    cut = mm.train("ppo", run="cut-critic", resume=True, workspace=workspace, plugins=DRAWN["plugins"], quiet=True)
    files = [next(run.checkpoints.glob("step-00000004")) / "critic.safetensors" for run in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes() and logged(whole)[3:] == logged(cut)[3:]


def test_a_role_s_adapter_has_its_options_in_any_order_on_the_line(
    tuned: RunFolder, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "train --critic-lora-rank=4 --dry-run --algo=ppo --critic-adapter=lora --from=base --reward=length --backend=cpu"
    monkeypatch.setenv("MM_WORKSPACE", str(tuned.path.parents[1]))
    found = mm_cli(*line.split())
    assert "critic_lora_rank = 4" in found.out, found
    for wrong, message in (
        (line.replace("--critic-adapter=lora", ""), "No such option: --critic-lora-rank"),
        (line.replace("--critic-lora-rank", "--lora-rank"), "--lora-rank is an option of adapter 'lora'"),
        (line.replace("critic-adapter=lora", "critic-adapter=lor"), "Did you mean 'lora'"),
        (f"{line} --optimizer=muon --adapter=lora".replace("--dry-run", ""), "matrices and lora, lora trains none"),
    ):
        assert message in mm_cli(*wrong.split(), code=2).err
