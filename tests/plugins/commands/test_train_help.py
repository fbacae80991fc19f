"""`mm train --help`: the choices with their meanings, and the defaults that the selected parts have."""

from __future__ import annotations

import re

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec
from mm.testing.pytest_plugin import CommandLine


def shown(mm_cli: CommandLine, *words: str) -> str:
    return " ".join(mm_cli("train", *words, "--help").out.split())


def test_every_choice_stands_with_its_meaning(mm_cli: CommandLine, installed: PluginManager) -> None:
    text = shown(mm_cli)
    for spec in (*installed.specs(AlgorithmSpec), *installed.specs(ArchitectureSpec)):
        assert f" {spec.name} {spec.summary}" in text
    assert "Choices of --preset with --arch dense: minimind2-small parameters: 25.83M" in text
    assert "--algo NAME Training algorithm." in text


def test_what_is_given_is_not_offered(mm_cli: CommandLine) -> None:
    text = shown(mm_cli, "--algo", "sft", "--from", "base")
    assert not re.search(r"Choices of --(algo|arch|preset)", text) and "Choices of --adapter:" in text
    text = shown(mm_cli, "--algo", "grpo", "--arch", "moe")
    assert "Choices of --reward: " in text and "--arch moe:" in text and "--arch dense:" not in text


def test_the_defaults_are_those_of_the_algorithm_and_the_preset(mm_cli: CommandLine, installed: PluginManager) -> None:
    for name in ("grpo", "pretrain"):
        own = installed.get(AlgorithmSpec, name).defaults
        text = shown(mm_cli, "--algo", name, "--learning-rate", "3")
        assert f"Peak learning rate. [default: {own['learning_rate']}]" in text
        assert f"over all ranks. [default: {own['global_batch_size']}]" in text
    tiny = shown(mm_cli, "--algo", "pretrain", "--arch", "dense", "--preset", "tiny")
    assert "--dense-hidden-size INT Width of the residual stream. [default: 96]" in tiny
    assert "Width of the residual stream. [default: 512]" in shown(mm_cli, "--algo", "pretrain", "--arch", "dense")
